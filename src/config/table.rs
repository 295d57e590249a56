//! Lets a table be written as a table only.
//!
//! What serde derives for a struct reads a list too, field by field: `[[server]]` would be taken for `[server]`.

/// Implements `Deserialize` for structs that derive it with `#[serde(remote = "Self")]`, from a table and nothing else.
macro_rules! tables {
    ($($table:ident)*) => {$(
        impl<'de> serde::Deserialize<'de> for $table {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Table;

                impl<'de> serde::de::Visitor<'de> for Table {
                    type Value = $table;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a table")
                    }

                    fn visit_map<A>(self, map: A) -> Result<$table, A::Error>
                    where
                        A: serde::de::MapAccess<'de>,
                    {
                        // The inherent function that `remote` makes, which comes before this trait's.
                        $table::deserialize(serde::de::value::MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_map(Table)
            }
        }
    )*};
}

pub(super) use tables;
