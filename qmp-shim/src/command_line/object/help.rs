//! `--object help` and `--object TYPE,help`.

use crate::throttle_group::Limits;

const IOTHREAD: &[(&str, &str)] = &[
    ("aio-max-batch", "int"),
    ("poll-grow", "int"),
    ("poll-max-ns", "int"),
    ("poll-shrink", "int"),
    ("thread-pool-max", "int"),
    ("thread-pool-min", "int"),
];
const SECRET: &[(&str, &str)] = &[
    ("data", "string"),
    ("file", "string"),
    ("format", "raw|base64"),
];
const X509: &[(&str, &str)] = &[
    ("dir", "string"),
    ("endpoint", "client|server"),
    ("passwordid", "string"),
    ("priority", "string"),
    ("sanity-check", "bool"),
    ("verify-peer", "bool"),
];
const PSK: &[(&str, &str)] = &[
    ("dir", "string"),
    ("endpoint", "client|server"),
    ("priority", "string"),
    ("username", "string"),
    ("verify-peer", "bool"),
];
const ANON: &[(&str, &str)] = &[
    ("dir", "string"),
    ("endpoint", "client|server"),
    ("priority", "string"),
    ("verify-peer", "bool"),
];
const AUTHZ_LIST: &[(&str, &str)] = &[
    ("policy", "deny|allow"),
    ("rules.N.format", "exact|glob"),
    ("rules.N.match", "string"),
    ("rules.N.policy", "deny|allow"),
];
const AUTHZ_LISTFILE: &[(&str, &str)] = &[("filename", "string"), ("refresh", "bool")];
const AUTHZ_SIMPLE: &[(&str, &str)] = &[("identity", "string")];

/// Every type and its options; those of throttle-group are in a table of their own.
const TYPES: &[(&str, &[(&str, &str)])] = &[
    ("authz-list", AUTHZ_LIST),
    ("authz-listfile", AUTHZ_LISTFILE),
    ("authz-simple", AUTHZ_SIMPLE),
    ("iothread", IOTHREAD),
    ("secret", SECRET),
    ("throttle-group", &[]),
    ("tls-creds-anon", ANON),
    ("tls-creds-psk", PSK),
    ("tls-creds-x509", X509),
];

/// The options of a type, or the types if it is none of them.
pub(super) fn help(kind: Option<&str>) -> String {
    let known = TYPES.iter().find(|(name, _)| Some(*name) == kind);
    let Some((name, options)) = known else {
        let mut text = "List of user creatable objects:\n".to_owned();
        for (name, _) in TYPES {
            text.push_str(&format!("  {name}\n"));
        }
        return text;
    };
    let mut lines: Vec<_> = options
        .iter()
        .map(|(key, value)| format!("  {key}=<{value}>\n"))
        .collect();
    if *name == "throttle-group" {
        lines = Limits::keys()
            .flat_map(|key| {
                [
                    format!("  limits.{key}=<int>\n"),
                    format!("  x-{key}=<int>\n"),
                ]
            })
            .collect();
        lines.sort();
    }
    format!("{name} options:\n{}", lines.concat())
}
