//! Who may come in, by the name that he has proved to have.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Rules about names. The first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessList {
    /// In the order in which they are asked.
    pub rules: Vec<AccessRule>,
    /// Whether somebody may come in whom no rule is about.
    pub allows_others: bool,
}

/// A rule about some names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    /// Which names.
    pub names: NamePattern,
    /// Whether they may come in.
    pub allows: bool,
}

/// A set of names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePattern {
    /// This one alone.
    Exact(String),
    /// A pattern: `*` stands for any characters or none, `?` for exactly one.
    Glob(String),
}

impl AccessList {
    /// For one and nobody else.
    pub fn only(name: &str) -> Self {
        let names = NamePattern::Exact(name.to_owned());
        Self {
            rules: vec![AccessRule {
                names,
                allows: true,
            }],
            allows_others: false,
        }
    }

    /// Whether a name may come in.
    pub fn allows(&self, name: &str) -> bool {
        let rule = self.rules.iter().find(|rule| rule.names.matches(name));
        rule.map_or(self.allows_others, |rule| rule.allows)
    }
}

impl NamePattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(wanted) => wanted == name,
            Self::Glob(pattern) => glob_matches(pattern, name),
        }
    }
}

/// In time of the product of both lengths at most, for names are chosen by others.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut at, mut from) = (0, 0);
    // Behind the last star, and where what it stands for ends if it is tried again.
    let mut star = None;
    while from < name.len() {
        match pattern.get(at) {
            Some('*') => {
                star = Some((at + 1, from));
                at += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == name[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((behind, end)) = star else {
                    return false;
                };
                star = Some((behind, end + 1));
                (at, from) = (behind, end + 1);
            }
        }
    }
    pattern[at..].iter().all(|&rest| rest == '*')
}

/// Lists by their ids, for every thread. They come and go while servers run.
#[derive(Clone, Debug, Default)]
pub struct AccessLists {
    all: Arc<RwLock<BTreeMap<String, Arc<AccessList>>>>,
}

impl AccessLists {
    /// Makes a list known. One that had its id is forgotten.
    pub fn insert(&self, id: &str, list: AccessList) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(id.to_owned(), Arc::new(list));
    }

    /// Forgets a list.
    pub fn remove(&self, id: &str) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.remove(id);
    }

    /// A list, if there is one of this id now.
    pub fn find(&self, id: &str) -> Option<Arc<AccessList>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.get(id).map(Arc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "O=Acme,CN=cli", true),
            ("O=Acme,*", "O=Acme,CN=cli", true),
            ("O=Acme,*", "O=Acm,CN=cli", false),
            ("*CN=cli", "O=Acme,CN=cli", true),
            ("*CN=cli", "O=Acme,CN=client", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
            ("*ab", "aab", true),
            ("a?c", "abc", true),
            ("a?c", "a\u{e9}c", true),
            ("a?c", "ac", false),
            ("?", "", false),
            ("a**", "a", true),
            ("a*[b]", "axb", false),
        ] {
            assert_eq!(glob_matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn long_names_end_soon() {
        let pattern = "*a".repeat(40) + "b";
        assert!(!glob_matches(&pattern, &"a".repeat(4000)));
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rule = |pattern: &str, allows| AccessRule {
            names: NamePattern::Glob(pattern.into()),
            allows,
        };
        let mut list = AccessList {
            rules: vec![rule("CN=b*", false), rule("CN=?*", true)],
            allows_others: false,
        };
        assert!(list.allows("CN=alice"));
        assert!(!list.allows("CN=bob"));
        assert!(!list.allows("CN="));
        list.allows_others = true;
        assert!(list.allows("CN="));
        let only = AccessList::only("CN=a*");
        assert!(only.allows("CN=a*") && !only.allows("CN=ab"));
        assert!(!AccessList::default().allows(""));
    }

    #[test]
    fn lists_come_and_go() {
        let lists = AccessLists::default();
        let other = lists.clone();
        other.insert("l", AccessList::only("a"));
        assert!(lists.find("l").is_some_and(|list| list.allows("a")));
        other.remove("l");
        assert_eq!(lists.find("l"), None);
    }
}
