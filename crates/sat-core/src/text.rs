//! Types whose serialised form is their name.

/// For a type with `Display` and `FromStr`: what `#[serde(into = "String", try_from = "String")]` calls.
macro_rules! by_text {
    ($type:ty, $error:ty) => {
        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }

        impl TryFrom<String> for $type {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }
    };
}

pub(crate) use by_text;
