//! Types whose values are words.

/// A type whose values are words.
pub trait Word: Copy + 'static {
    /// Every word and what it stands for.
    const WORDS: &'static [(&'static str, Self)];

    /// The value a word stands for.
    #[must_use]
    fn from_word(word: &str) -> Option<Self> {
        Self::WORDS
            .iter()
            .find(|(known, _)| *known == word)
            .map(|&(_, value)| value)
    }

    /// The word that stands for the value.
    #[must_use]
    fn word(self) -> &'static str
    where
        Self: PartialEq,
    {
        let mut words = Self::WORDS.iter();
        let found = words.find(|(_, value)| *value == self);
        found.map_or("", |(word, _)| word)
    }
}

/// Declares an enum of words: `Variant = "word"`. The first one is the default.
macro_rules! words {
    (
        $(#[$attribute:meta])*
        $vis:vis enum $name:ident {
            $(#[$first_doc:meta])*
            $first:ident = $first_word:literal,
            $($(#[$doc:meta])* $variant:ident = $word:literal,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize)]
        $vis enum $name {
            $(#[$first_doc])*
            #[default]
            #[serde(rename = $first_word)]
            $first,
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $crate::visit::Word for $name {
            const WORDS: &'static [(&'static str, Self)] =
                &[($first_word, Self::$first), $(($word, Self::$variant),)*];
        }
    };
}
pub(crate) use words;
