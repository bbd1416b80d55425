//! Rows: what a statement answers, by column name.

use std::sync::Arc;

use caracal_model::Timestamp;
use rusqlite::types::ValueRef;
use serde::de::DeserializeOwned;
use tokio_postgres::types::{FromSql, Type};

use crate::error::StoreError;

/// A stored value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Text(String),
    Int(i64),
    Bool(bool),
    Bytes(Vec<u8>),
}

/// One row. A column that is missing or of another kind is [`StoreError::Corrupt`].
#[derive(Clone)]
pub struct Row {
    columns: Arc<[String]>,
    values: Vec<Value>,
}

impl std::fmt::Debug for Row {
    /// The columns only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Row")
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

impl Row {
    pub(crate) fn new(columns: Arc<[String]>, values: Vec<Value>) -> Self {
        Self { columns, values }
    }

    fn get(&self, column: &str) -> Result<&Value, StoreError> {
        self.columns
            .iter()
            .position(|name| name == column)
            .and_then(|at| self.values.get(at))
            .ok_or_else(|| StoreError::corrupt(format!("no column {column}")))
    }

    fn wrong(column: &str) -> StoreError {
        StoreError::corrupt(format!("column {column} is of another kind"))
    }

    /// TEXT or NULL.
    pub fn opt_text(&self, column: &str) -> Result<Option<&str>, StoreError> {
        match self.get(column)? {
            Value::Null => Ok(None),
            Value::Text(text) => Ok(Some(text)),
            _ => Err(Self::wrong(column)),
        }
    }

    /// TEXT.
    pub fn text(&self, column: &str) -> Result<&str, StoreError> {
        self.opt_text(column)?.ok_or_else(|| Self::wrong(column))
    }

    /// TEXT, owned.
    pub fn string(&self, column: &str) -> Result<String, StoreError> {
        self.text(column).map(str::to_owned)
    }

    /// TEXT or NULL, owned.
    pub fn opt_string(&self, column: &str) -> Result<Option<String>, StoreError> {
        Ok(self.opt_text(column)?.map(str::to_owned))
    }

    /// BIGINT or NULL.
    pub fn opt_int(&self, column: &str) -> Result<Option<i64>, StoreError> {
        match self.get(column)? {
            Value::Null => Ok(None),
            Value::Int(int) => Ok(Some(*int)),
            _ => Err(Self::wrong(column)),
        }
    }

    /// BIGINT.
    pub fn int(&self, column: &str) -> Result<i64, StoreError> {
        self.opt_int(column)?.ok_or_else(|| Self::wrong(column))
    }

    /// BIGINT that counts something.
    pub fn count(&self, column: &str) -> Result<u64, StoreError> {
        u64::try_from(self.int(column)?).map_err(|_| Self::wrong(column))
    }

    /// BOOLEAN or NULL; SQLite stores 0 and 1.
    pub fn opt_bool(&self, column: &str) -> Result<Option<bool>, StoreError> {
        match self.get(column)? {
            Value::Null => Ok(None),
            Value::Bool(bool) => Ok(Some(*bool)),
            Value::Int(0) => Ok(Some(false)),
            Value::Int(1) => Ok(Some(true)),
            _ => Err(Self::wrong(column)),
        }
    }

    /// BOOLEAN.
    pub fn bool(&self, column: &str) -> Result<bool, StoreError> {
        self.opt_bool(column)?.ok_or_else(|| Self::wrong(column))
    }

    /// BYTEA or NULL.
    pub fn opt_bytes(&self, column: &str) -> Result<Option<&[u8]>, StoreError> {
        match self.get(column)? {
            Value::Null => Ok(None),
            Value::Bytes(bytes) => Ok(Some(bytes)),
            _ => Err(Self::wrong(column)),
        }
    }

    /// BYTEA.
    pub fn bytes(&self, column: &str) -> Result<&[u8], StoreError> {
        self.opt_bytes(column)?.ok_or_else(|| Self::wrong(column))
    }

    /// A time or NULL.
    pub fn opt_time(&self, column: &str) -> Result<Option<Timestamp>, StoreError> {
        Ok(self.opt_int(column)?.map(Timestamp::from_unix_micros))
    }

    /// A time.
    pub fn time(&self, column: &str) -> Result<Timestamp, StoreError> {
        self.int(column).map(Timestamp::from_unix_micros)
    }

    /// TEXT that is JSON.
    pub fn json<T: DeserializeOwned>(&self, column: &str) -> Result<T, StoreError> {
        serde_json::from_str(self.text(column)?)
            .map_err(|error| StoreError::corrupt(format!("column {column}: {error}")))
    }

    /// TEXT that is JSON, or NULL.
    pub fn opt_json<T: DeserializeOwned>(&self, column: &str) -> Result<Option<T>, StoreError> {
        match self.opt_text(column)? {
            None => Ok(None),
            Some(_) => self.json(column).map(Some),
        }
    }
}

impl Value {
    pub(crate) fn from_lite(value: ValueRef<'_>) -> Result<Self, StoreError> {
        Ok(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(int) => Self::Int(int),
            ValueRef::Text(text) => Self::Text(
                std::str::from_utf8(text)
                    .map_err(|_| StoreError::corrupt("text is not UTF-8"))?
                    .to_owned(),
            ),
            ValueRef::Blob(bytes) => Self::Bytes(bytes.to_vec()),
            ValueRef::Real(_) => return Err(StoreError::corrupt("a fraction")),
        })
    }
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(
        ty: &Type,
        raw: &'a [u8],
    ) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(match *ty {
            Type::INT8 => Self::Int(i64::from_sql(ty, raw)?),
            Type::INT4 => Self::Int(i32::from_sql(ty, raw)?.into()),
            Type::INT2 => Self::Int(i16::from_sql(ty, raw)?.into()),
            Type::BOOL => Self::Bool(bool::from_sql(ty, raw)?),
            Type::BYTEA => Self::Bytes(raw.to_vec()),
            Type::VOID => Self::Null,
            _ => Self::Text(String::from_sql(ty, raw)?),
        })
    }

    fn from_sql_null(_: &Type) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self::Null)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(
            *ty,
            Type::INT8 | Type::INT4 | Type::INT2 | Type::BOOL | Type::BYTEA | Type::VOID
        ) || <String as FromSql>::accepts(ty)
    }
}
