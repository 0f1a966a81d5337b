//! TLS, demanded of every client, and who may come in.

use std::rc::Rc;

use ringback_net::{AccessLists, Connection, Reader, ServerCredentials};

/// What clients must agree to before anything else.
#[derive(Clone, Debug)]
pub struct Tls {
    /// What the server shows, and whom it believes.
    pub credentials: ServerCredentials,
    /// Who of those may come in; everyone, if this is missing.
    pub authorization: Option<Authorization>,
}

/// A list of those who may come in, looked for each time that somebody comes. If it
/// is not there, nobody may.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The list's id.
    pub id: String,
    /// Where it is looked for.
    pub lists: AccessLists,
}

impl Tls {
    /// Starts TLS. Whoever may not come in finds the connection closed: TLS has told
    /// it by then that all is well.
    pub(super) async fn start(
        &self,
        connection: &Rc<Connection>,
        reader: &mut Reader,
    ) -> Result<(), String> {
        let started = connection.start_tls_server(reader, &self.credentials).await;
        started.map_err(|error| error.to_string())?;
        match &self.authorization {
            Some(authorization) => authorization.check(connection.peer_name().as_deref()),
            None => Ok(()),
        }
    }
}

impl Authorization {
    fn check(&self, name: Option<&str>) -> Result<(), String> {
        let Some(list) = self.lists.find(&self.id) else {
            return Err(format!("Cannot find QAuthZ object ID {}", self.id));
        };
        match name {
            Some(name) if list.allows(name) => Ok(()),
            Some(name) => Err(format!("TLS x509 authz check for {name} is denied")),
            None => Err("the name in the client's certificate cannot be read".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringback_net::AccessList;

    #[test]
    fn nobody_comes_in_unnoticed() {
        let lists = AccessLists::default();
        let authorization = Authorization {
            id: "l".into(),
            lists: lists.clone(),
        };
        let missing = Err("Cannot find QAuthZ object ID l".to_owned());
        assert_eq!(authorization.check(Some("O=Acme,CN=cli")), missing);
        lists.insert("l", AccessList::only("O=Acme,CN=cli"));
        assert_eq!(authorization.check(Some("O=Acme,CN=cli")), Ok(()));
        assert_eq!(
            authorization.check(Some("CN=cli")),
            Err("TLS x509 authz check for CN=cli is denied".into())
        );
        assert!(authorization.check(None).is_err());
        lists.remove("l");
        assert_eq!(authorization.check(Some("O=Acme,CN=cli")), missing);
    }
}
