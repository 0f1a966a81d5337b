//! Exports: nodes that clients outside of the process use; and the NBD server,
//! through which they come.
//!
//! An export that clients use goes in two steps: they lose their connections, and
//! when the last of their requests has ended, a message comes and the export goes.

use std::sync::Arc;

use ringback_block::graph::{Access, UserId};
use ringback_block::metrics::clients::{self, Measured};
use ringback_export::nbd::{self, Options, Server};
use ringback_qmp_shim::command::{BlockExportRemoveMode, NbdServerAdd};
use ringback_qmp_shim::command_error::CommandError;
use ringback_qmp_shim::command_line::{
    ArgumentError, Export, ExportBitmap, ExportKind, NbdExport, NbdServer,
};
use ringback_qmp_shim::event::Event;
use serde_json::{Value, json};

use super::Reply;
use super::control::Control;
use super::export_bitmaps::HeldBitmap;
use super::inbox::Message;
use super::jobs::SOON_NS;
use super::listen::listen;
use crate::open::reason;

/// What users of nodes are called that have no name of their own.
const ANONYMOUS: &str = "an unnamed block device";

/// The server, if there is one, and every export.
#[derive(Default)]
pub(super) struct Exports {
    server: Option<Server>,
    /// Oldest first.
    all: Vec<BlockExport>,
    next_number: u64,
}

struct BlockExport {
    id: String,
    /// Tells it from others that had its id before.
    number: u64,
    user: UserId,
    nbd: Arc<nbd::Export>,
    /// It was asked for by the name of this drive, and goes with the medium.
    drive: Option<String>,
    /// What nobody else may change as long as it is there.
    bitmaps: Vec<HeldBitmap>,
    is_shutting_down: bool,
}

fn generic(text: impl Into<String>) -> CommandError {
    CommandError::generic(text)
}

impl Exports {
    fn find(&self, id: &str) -> Option<&BlockExport> {
        self.all.iter().find(|export| export.id == id)
    }

    fn server(&self) -> Result<&Server, CommandError> {
        Ok(self.server.as_ref().ok_or(ArgumentError::NoServer)?)
    }
}

impl Control {
    pub(super) async fn nbd_server_start(&mut self, server: &NbdServer) -> Reply {
        self.start_nbd_server(server).await?;
        Ok(json!({}))
    }

    /// Listens. Whoever comes before there is an export hears that there is none.
    pub(super) async fn start_nbd_server(
        &mut self,
        server: &NbdServer,
    ) -> Result<(), CommandError> {
        if self.exports.server.is_some() {
            return Err(ArgumentError::ServerRunning.into());
        }
        let tls = self.server_tls(server)?;
        let listener = listen(&self.shard, &server.address).await?;
        let options = Options {
            max_connections: server.max_connections,
            handshake_seconds: server.handshake_max_seconds.into(),
        };
        let server = Server::start(&self.shard, listener, options, tls)
            .map_err(|error| generic(error.to_string()))?;
        self.exports.server = Some(server);
        Ok(())
    }

    /// Every client is cut, every NBD export goes; and what is in flight is waited
    /// for.
    pub(super) async fn nbd_server_stop(&mut self) -> Reply {
        self.exports.server()?;
        self.stop_exports().await;
        Ok(json!({}))
    }

    pub(super) async fn stop_exports(&mut self) {
        let Some(server) = self.exports.server.take() else {
            return;
        };
        for export in &mut self.exports.all {
            export.is_shutting_down = true;
            server.remove(&export.nbd);
        }
        // Idle ones first, the youngest before the others.
        let idle = self.exports.all.iter().rev();
        let idle: Vec<u64> = idle
            .filter(|export| export.nbd.clients.count() == 0)
            .map(|export| export.number)
            .collect();
        for number in idle {
            self.finish_export(number).await;
        }
        server.stop(&self.shard).await;
        while let Some(export) = self.exports.all.last() {
            self.finish_export(export.number).await;
        }
    }

    pub(super) async fn block_export_add(&mut self, export: &Export) -> Reply {
        self.add_export(export).await?;
        Ok(json!({}))
    }

    /// Offers a node.
    pub(super) async fn add_export(&mut self, export: &Export) -> Result<(), CommandError> {
        if self.exports.find(&export.id).is_some() {
            let id = export.id.clone();
            return Err(ArgumentError::ExportInUse { id }.into());
        }
        export.check_supported()?;
        let ExportKind::Nbd(own) = &export.kind else {
            return Err(generic(
                "ringback has no exports of type 'vhost-user-blk' yet",
            ));
        };
        let node = self.find_node(None, Some(&export.node_name))?;
        if export.writable && self.is_read_only(&node) {
            return Err(generic("Cannot export read-only node as writable"));
        }
        if let Some(id) = &export.iothread
            && self.objects.iothread(id).is_none()
        {
            return Err(ArgumentError::NoIothread { id: id.clone() }.into());
        }
        let access = Access {
            read: true,
            write: export.writable,
            keeps_size: true,
            ..Access::default()
        };
        let held = self.graph.attach(&self.shard, &node, ANONYMOUS, access);
        let (user, attachment) = held.await.map_err(|error| generic(reason(error)))?;
        let made = self.make_export(export, own, &node, attachment);
        let (nbd, bitmaps) = match made {
            Ok(made) => made,
            Err(error) => {
                self.graph.detach(user).await;
                return Err(error);
            }
        };
        self.exports.server()?.add(&nbd);
        let number = self.exports.next_number;
        self.exports.next_number += 1;
        self.exports.all.push(BlockExport {
            id: export.id.clone(),
            number,
            user,
            nbd,
            drive: None,
            bitmaps,
            is_shutting_down: false,
        });
        Ok(())
    }

    pub(super) fn is_read_only(&self, node: &str) -> bool {
        let policy = self.graph.policy(node);
        policy.is_ok_and(|policy| policy.read_only)
    }

    /// What clients see, and the bitmaps that are held for it.
    fn make_export(
        &mut self,
        export: &Export,
        own: &NbdExport,
        node: &str,
        attachment: ringback_block::port::Attachment,
    ) -> Result<(Arc<nbd::Export>, Vec<HeldBitmap>), CommandError> {
        let server = self.exports.server()?;
        let name = own.name.clone().unwrap_or_else(|| export.node_name.clone());
        if server.has(&name) {
            return Err(generic(format!(
                "NBD server already has export named '{name}'"
            )));
        }
        let is_multi_conn = server.options().max_connections != 1;
        let (held, bitmaps) = self.hold_bitmaps(export, own, node)?;
        let port = attachment.port(&self.shard);
        let minimum = u32::try_from(port.request_alignment()).unwrap_or(1);
        let nbd = nbd::Export {
            name,
            description: own.description.clone(),
            is_writable: export.writable,
            is_writethrough: export.writethrough,
            bitmaps,
            has_depth: own.allocation_depth,
            size: port.size(),
            attachment,
            minimum_block: minimum,
            is_multi_conn,
            measured: Measured {
                number: self.exports.next_number,
                id: export.id.clone(),
            },
            clients: nbd::export::Clients::default(),
        };
        Ok((Arc::new(nbd), held))
    }

    pub(super) async fn nbd_server_add(&mut self, add: NbdServerAdd) -> Reply {
        self.exports.server()?;
        let node = self.find_node(Some(&add.device), Some(&add.device))?;
        let is_drive = self.node_of_device(&add.device).is_some();
        let name = add.name.unwrap_or_else(|| add.device.clone());
        let bitmaps = add.bitmap.map(|name| ExportBitmap { node: None, name });
        let export = Export {
            id: name.clone(),
            writable: add.writable.unwrap_or(false) && !self.is_read_only(&node),
            node_name: node,
            writethrough: false,
            iothread: None,
            fixed_iothread: false,
            allow_inactive: false,
            kind: ExportKind::Nbd(NbdExport {
                name: Some(name),
                description: add.description,
                bitmaps: bitmaps.into_iter().collect(),
                allocation_depth: false,
            }),
        };
        export.check()?;
        self.add_export(&export).await?;
        if is_drive && let Some(added) = self.exports.all.last_mut() {
            added.drive = Some(add.device);
        }
        Ok(json!({}))
    }

    /// Ends what was exported of a drive whose medium is taken out.
    pub(super) async fn end_exports_of_drive(&mut self, drive: &str) {
        let all = self.exports.all.iter();
        let ended = all.filter(|export| export.drive.as_deref() == Some(drive));
        let ended: Vec<u64> = ended.map(|export| export.number).collect();
        for number in ended {
            self.end_export(number).await;
        }
    }

    pub(super) async fn nbd_server_remove(
        &mut self,
        name: &str,
        mode: Option<BlockExportRemoveMode>,
    ) -> Reply {
        self.block_export_del(name, mode).await
    }

    pub(super) async fn block_export_del(
        &mut self,
        id: &str,
        mode: Option<BlockExportRemoveMode>,
    ) -> Reply {
        let export = self.exports.find(id);
        let export = export.ok_or_else(|| generic(format!("Export '{id}' is not found")))?;
        if export.is_shutting_down {
            return Err(generic(format!("Export '{id}' is already shutting down")));
        }
        let (number, nbd) = (export.number, Arc::clone(&export.nbd));
        if mode == Some(BlockExportRemoveMode::Hard) {
            self.end_export(number).await;
            return Ok(json!({}));
        }
        // Who has just hung up may not have been noticed yet.
        let deadline_ns = self.shard.now_ns().saturating_add(SOON_NS);
        nbd.clients.gone_until(&self.shard, deadline_ns).await;
        if !self.exports.server()?.remove_unused(&nbd) {
            return Err(generic(format!("export '{id}' still in use")));
        }
        self.finish_export(number).await;
        Ok(json!({}))
    }

    /// Nobody can choose an export any more, its clients are cut, and it goes when
    /// the last of their requests has ended.
    async fn end_export(&mut self, number: u64) {
        let Some(server) = &self.exports.server else {
            return;
        };
        let mut all = self.exports.all.iter_mut();
        let Some(export) = all.find(|export| export.number == number) else {
            return;
        };
        if export.is_shutting_down {
            return;
        }
        let nbd = Arc::clone(&export.nbd);
        if server.remove_unused(&nbd) {
            self.finish_export(number).await;
            return;
        }
        export.is_shutting_down = true;
        server.remove(&nbd);
        server.cut(&nbd).await;
        let (shard, address) = (self.shard.clone(), self.address.clone());
        self.shard.spawn(async move {
            nbd.clients.gone(&shard).await;
            address.send(Message::ExportIdle { number });
        });
    }

    /// Nobody uses an export any more that nobody can choose any more.
    pub(super) async fn finish_export(&mut self, number: u64) {
        let mut all = self.exports.all.iter();
        let Some(index) = all.position(|export| export.number == number) else {
            return;
        };
        let export = self.exports.all.remove(index);
        clients::forget(self.shard.set(), number).await;
        self.let_bitmaps_go(&export.bitmaps);
        self.let_user_go(export.user).await;
        self.tell(&Event::BlockExportDeleted { id: export.id });
    }

    /// Newest first.
    pub(super) fn query_block_exports(&self) -> Value {
        let all = self.exports.all.iter().rev();
        all.map(|export| {
            json!({
                "id": export.id,
                "type": "nbd",
                "node-name": self.graph.node_of(export.user).unwrap_or_default(),
                "shutting-down": export.is_shutting_down,
            })
        })
        .collect()
    }
}
