//! Whom a certificate is about, as one line of text.
//!
//! The form is the one that QEMU compares with its lists, for lists that work there
//! must work here: the parts in the order of the certificate, `O=Acme,CN=cli`,
//! several values of one part joined by `+`. A value of a kind that has no name
//! here, or that is no plain text, is shown as the bytes of its encoding:
//! `1.2.3.4=#0c036f6464`. Since commas and the like are escaped by a backslash,
//! nobody can look like somebody else.

use std::fmt::Write;

use x509_cert::Certificate;
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::der::{Decode, Encode, Tag, Tagged};

/// Kinds of values and their names.
const KINDS: &[(&str, &str)] = &[
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("1.2.840.113549.1.9.1", "EMAIL"),
    (
        "1.3.6.1.4.1.311.60.2.1.1",
        "jurisdictionOfIncorporationLocalityName",
    ),
    (
        "1.3.6.1.4.1.311.60.2.1.2",
        "jurisdictionOfIncorporationStateOrProvinceName",
    ),
    (
        "1.3.6.1.4.1.311.60.2.1.3",
        "jurisdictionOfIncorporationCountryName",
    ),
    ("2.5.4.3", "CN"),
    ("2.5.4.4", "surName"),
    ("2.5.4.5", "serialNumber"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "street"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.12", "title"),
    ("2.5.4.13", "description"),
    ("2.5.4.15", "businessCategory"),
    ("2.5.4.17", "postalCode"),
    ("2.5.4.41", "name"),
    ("2.5.4.42", "givenName"),
    ("2.5.4.43", "initials"),
    ("2.5.4.44", "generationQualifier"),
    ("2.5.4.46", "dnQualifier"),
    ("2.5.4.65", "pseudonym"),
];

/// The name in a certificate; none if it cannot be read.
pub fn distinguished_name(certificate: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let mut text = String::new();
    for part in certificate.tbs_certificate().subject().iter_rdn() {
        if !text.is_empty() {
            text.push(',');
        }
        for (index, value) in part.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            push_value(&mut text, value)?;
        }
    }
    Some(text)
}

fn push_value(text: &mut String, value: &AttributeTypeAndValue) -> Option<()> {
    let kind = value.oid.to_string();
    let known = KINDS.iter().find(|(number, _)| *number == kind);
    if let Some((_, name)) = known
        && let Some(plain) = plain_text(value)
    {
        text.push_str(name);
        text.push('=');
        push_escaped(text, plain);
    } else {
        text.push_str(&kind);
        text.push_str("=#");
        for byte in value.value.to_der().ok()? {
            write!(text, "{byte:02x}").ok()?;
        }
    }
    Some(())
}

/// The value if it is text that fits on a line.
fn plain_text(value: &AttributeTypeAndValue) -> Option<&str> {
    let is_text = matches!(
        value.value.tag(),
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::TeletexString
    );
    let text = std::str::from_utf8(value.value.value()).ok()?;
    (is_text && !text.chars().any(char::is_control)).then_some(text)
}

fn push_escaped(text: &mut String, value: &str) {
    let last = value.chars().count().saturating_sub(1);
    for (index, character) in value.chars().enumerate() {
        let is_special = match character {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            '#' => index == 0,
            ' ' => index == 0 || index == last,
            _ => false,
        };
        if is_special {
            text.push('\\');
        }
        text.push(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn named(values: &[(DnType, &str)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, value) in values {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        distinguished_name(certificate.der()).expect("a name")
    }

    #[test]
    fn parts_come_in_the_order_of_the_certificate() {
        let name = named(&[
            (DnType::OrganizationName, "Acme"),
            (DnType::CommonName, "cli"),
        ]);
        assert_eq!(name, "O=Acme,CN=cli");
        let name = named(&[
            (DnType::CommonName, "cli"),
            (DnType::OrganizationName, "Acme"),
            (DnType::CustomDnType(vec![2, 5, 4, 5]), "12"),
        ]);
        assert_eq!(name, "CN=cli,O=Acme,serialNumber=12");
        assert_eq!(named(&[]), "");
    }

    #[test]
    fn nobody_looks_like_somebody_else() {
        for (value, shown) in [
            ("cli,O=Acme", "cli\\,O=Acme"),
            (" a b ", "\\ a b\\ "),
            ("#a#", "\\#a#"),
            ("a+b;<c>\"d\"\\", "a\\+b\\;\\<c\\>\\\"d\\\"\\\\"),
            ("\u{e9}", "\u{e9}"),
        ] {
            let name = named(&[(DnType::CommonName, value)]);
            assert_eq!(name, format!("CN={shown}"), "{value}");
        }
    }

    #[test]
    fn what_has_no_name_is_shown_as_bytes() {
        let odd = DnType::CustomDnType(vec![1, 2, 3, 4]);
        assert_eq!(named(&[(odd, "odd")]), "1.2.3.4=#0c036f6464");
        let name = named(&[(DnType::CommonName, "a\nb")]);
        assert_eq!(name, "2.5.4.3=#0c03610a62");
    }

    #[test]
    fn what_is_no_certificate_has_no_name() {
        assert_eq!(distinguished_name(b""), None);
        assert_eq!(distinguished_name(b"\x30\x03junk"), None);
    }
}
