//! Which names there are, option by option. What refers to nothing, or comes twice, is wrong
//! before anything is made.
//!
//! Nodes are not looked at: images may bring some along.

use std::collections::{HashMap, HashSet};

use super::Opt;
use super::error::{ArgumentError, Result};
use super::export::ExportKind;
use super::object::{Endpoint, ObjectKind};

/// What the options so far have made.
#[derive(Default)]
pub(super) struct Names {
    /// Whether a monitor has the device.
    chardevs: HashMap<String, bool>,
    objects: HashMap<String, Role>,
    exports: HashSet<String>,
    has_server: bool,
    has_metrics: bool,
}

/// What an object can be used as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Iothread,
    ServerCredentials,
    ClientCredentials,
    Other,
}

impl Names {
    pub(super) fn add(&mut self, option: &Opt) -> Result<()> {
        match option {
            Opt::Chardev(chardev) => {
                if self.chardevs.insert(chardev.id.clone(), false).is_some() {
                    let id = chardev.id.clone();
                    return Err(ArgumentError::DuplicateName { id });
                }
            }
            Opt::Monitor(monitor) => {
                let id = monitor.chardev.clone();
                let Some(in_use) = self.chardevs.get_mut(&id) else {
                    return Err(ArgumentError::NoChardev { id });
                };
                monitor.check_mode()?;
                if std::mem::replace(in_use, true) {
                    return Err(ArgumentError::ChardevInUse { id });
                }
            }
            Opt::Object(object) => {
                let role = match &object.kind {
                    ObjectKind::Iothread(_) => Role::Iothread,
                    ObjectKind::TlsCreds(creds) if creds.endpoint == Endpoint::Server => {
                        Role::ServerCredentials
                    }
                    ObjectKind::TlsCreds(_) => Role::ClientCredentials,
                    _ => Role::Other,
                };
                if self.objects.insert(object.id.clone(), role).is_some() {
                    let id = object.id.clone();
                    return Err(ArgumentError::DuplicateName { id });
                }
            }
            Opt::NbdServer(server) => {
                if self.has_server {
                    return Err(ArgumentError::ServerRunning);
                }
                if let Some(id) = &server.tls_creds {
                    self.check_credentials(id)?;
                }
                self.has_server = true;
            }
            Opt::Export(export) => {
                if self.exports.contains(&export.id) {
                    let id = export.id.clone();
                    return Err(ArgumentError::ExportInUse { id });
                }
                if let Some(id) = &export.iothread
                    && self.objects.get(id) != Some(&Role::Iothread)
                {
                    return Err(ArgumentError::NoIothread { id: id.clone() });
                }
                if !self.has_server && matches!(export.kind, ExportKind::Nbd(_)) {
                    return Err(ArgumentError::NoServer);
                }
                export.check_supported()?;
                self.exports.insert(export.id.clone());
            }
            Opt::Metrics(_) => {
                if std::mem::replace(&mut self.has_metrics, true) {
                    return Err(ArgumentError::MetricsServed);
                }
            }
            Opt::Blockdev(_) | Opt::Drive(_) | Opt::Device(_) => {}
        }
        Ok(())
    }

    fn check_credentials(&self, id: &str) -> Result<()> {
        let id = id.to_owned();
        match self.objects.get(&id) {
            None => Err(ArgumentError::NoCredentials { id }),
            Some(Role::ServerCredentials) => Ok(()),
            Some(Role::ClientCredentials) => Err(ArgumentError::ClientCredentials),
            Some(Role::Iothread | Role::Other) => Err(ArgumentError::NotCredentials { id }),
        }
    }
}
