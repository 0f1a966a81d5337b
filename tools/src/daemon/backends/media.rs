//! Drives whose medium can be taken out: trays, and what lies in them.

use ringback_qmp_shim::blockdev::Settings;
use ringback_qmp_shim::command::{BlockdevChangeMedium, BlockdevChangeReadOnlyMode};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::Device;
use ringback_qmp_shim::event::Event;
use ringback_qmp_shim::open as names;
use serde_json::{Map, json};

use super::super::Reply;
use super::super::control::Control;
use super::{Backend, generic, qdev};

impl Backend {
    /// Whether it has a tray: a device that a medium can be taken out of.
    fn has_tray(&self) -> bool {
        self.device.as_ref().is_some_and(Device::is_removable)
    }
}

impl Control {
    /// Takes the medium out, and opens the tray for it.
    pub(in super::super) async fn eject(
        &mut self,
        device: Option<&str>,
        id: Option<&str>,
    ) -> Reply {
        let index = self.removable(device, id)?;
        self.move_tray(index, true);
        self.take_medium(index).await;
        Ok(json!({}))
    }

    pub(in super::super) fn open_tray(&mut self, device: Option<&str>, id: Option<&str>) -> Reply {
        let index = self.removable(device, id)?;
        self.move_tray(index, true);
        Ok(json!({}))
    }

    pub(in super::super) fn close_tray(&mut self, device: Option<&str>, id: Option<&str>) -> Reply {
        let index = self.removable(device, id)?;
        self.move_tray(index, false);
        Ok(json!({}))
    }

    pub(in super::super) async fn remove_medium(&mut self, id: &str) -> Reply {
        let index = self.removable(None, Some(id))?;
        let backend = &self.backends[index];
        if backend.has_tray() && !backend.tray_open {
            return Err(generic(format!("Tray of device '{id}' is not open")));
        }
        self.take_medium(index).await;
        Ok(json!({}))
    }

    pub(in super::super) async fn insert_medium(&mut self, id: &str, node: &str) -> Reply {
        let index = self
            .find_device(id)
            .ok_or_else(|| CommandError::device_not_found(id))?;
        if !self.graph.contains(node) {
            return Err(generic(format!("Node '{node}' not found")));
        }
        if self.graph.has_users(node) {
            return Err(generic(format!("Node '{node}' is already in use")));
        }
        let backend = &self.backends[index];
        if !backend.is_removable() {
            return Err(generic("Device is not removable"));
        }
        if backend.has_tray() && !backend.tray_open {
            return Err(generic(format!("Tray of device '{id}' is not open")));
        }
        if backend.hold.is_some() {
            return Err(generic(format!(
                "There already is a medium in device '{id}'"
            )));
        }
        let hold = self.hold_for(index, node).await?;
        self.backends[index].hold = Some(hold);
        Ok(json!({}))
    }

    /// Another medium; if it cannot be opened nothing has moved.
    pub(in super::super) async fn change_medium(&mut self, change: &BlockdevChangeMedium) -> Reply {
        let (device, id) = (change.device.as_deref(), change.id.as_deref());
        let index = self.removable(device, id)?;
        let old = self.backends[index].hold.as_ref();
        let old = old.and_then(|hold| self.graph.node_of(hold.user));
        let was_read_only = old
            .and_then(|node| self.nodes.get(node))
            .is_some_and(|opened| opened.settings.read_only);
        let settings = Settings {
            read_only: match change.read_only_mode {
                Some(BlockdevChangeReadOnlyMode::ReadOnly) => true,
                Some(BlockdevChangeReadOnlyMode::ReadWrite) => false,
                Some(BlockdevChangeReadOnlyMode::Retain) | None => was_read_only,
            },
            ..Settings::default()
        };
        let mut options = Map::new();
        if let Some(format) = &change.format {
            options.insert("driver".into(), format.as_str().into());
        }
        let node = names::open(Some(&change.filename), &options, &settings)?;
        let node = self.open(node).await?;
        self.move_tray(index, true);
        self.take_medium(index).await;
        match self.hold_for(index, &node).await {
            Ok(hold) => self.backends[index].hold = Some(hold),
            Err(error) => {
                self.close(&node).await;
                return Err(error);
            }
        }
        self.move_tray(index, false);
        Ok(json!({}))
    }

    fn removable(&self, device: Option<&str>, id: Option<&str>) -> Result<usize, CommandError> {
        let (name, index) = match (device, id) {
            (Some(name), None) => {
                let mut backends = self.backends.iter();
                (name, backends.position(|backend| backend.name == name))
            }
            (None, Some(id)) => (id, self.find_device(id)),
            _ => return Err(generic("Need exactly one of 'device' and 'id'")),
        };
        let index = index.ok_or_else(|| CommandError::device_not_found(name))?;
        if !self.backends[index].is_removable() {
            return Err(generic(format!("Device '{name}' is not removable")));
        }
        Ok(index)
    }

    /// Nothing happens if the tray is there already, or there is none.
    fn move_tray(&mut self, index: usize, open: bool) {
        let backend = &mut self.backends[index];
        if !backend.has_tray() || backend.tray_open == open {
            return;
        }
        backend.tray_open = open;
        let event = Event::DeviceTrayMoved {
            device: backend.name.clone(),
            id: backend.device.as_ref().map(qdev).unwrap_or_default(),
            tray_open: open,
        };
        self.tell(&event);
    }

    async fn take_medium(&mut self, index: usize) {
        let drive = self.backends[index].name().to_owned();
        if !drive.is_empty() {
            self.end_exports_of_drive(&drive).await;
        }
        if let Some(hold) = self.backends[index].hold.take() {
            self.backends[index].past = hold.attachment.usage().await;
            self.let_go(hold).await;
        }
    }
}
