//! Parameters: what a statement is given, for both drivers.

use std::fmt;
use std::sync::Arc;

use bytes::BytesMut;
use caracal_crypto::digest::hex_encode;
use caracal_model::{
    ApplicationId, ApprovalId, DelegationId, EventId, Jti, Kid, ProviderId, RecordId, RequestId,
    ResourceId, SessionId, Timestamp, WorkloadId, ZoneId,
};
use rusqlite::types::{ToSqlOutput, Value as LiteValue, ValueRef};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};

use crate::error::StoreError;

/// A value on its way into a statement. Times go as microseconds.
#[derive(Clone)]
pub enum Param<'a> {
    /// TEXT.
    Text(&'a str),
    /// TEXT or NULL.
    OptText(Option<&'a str>),
    /// TEXT that the parameter owns.
    Owned(String),
    /// BIGINT.
    Int(i64),
    /// BIGINT or NULL.
    OptInt(Option<i64>),
    /// BOOLEAN.
    Bool(bool),
    /// BOOLEAN or NULL.
    OptBool(Option<bool>),
    /// BYTEA.
    Bytes(&'a [u8]),
    /// BYTEA or NULL.
    OptBytes(Option<&'a [u8]>),
    /// BYTEA that the parameter owns.
    Blob(Vec<u8>),
    /// `BYTEA[]` in Postgres, a JSON array of hex in SQLite (`IN (SELECT unhex(value) FROM
    /// json_each($1))`).
    Blobs(Vec<Vec<u8>>),
    /// `TEXT[]` in Postgres (`= ANY($1)`), a JSON array in SQLite (`IN (SELECT value FROM
    /// json_each($1))`).
    Texts(Vec<&'a str>),
    /// `BIGINT[]` in Postgres, a JSON array in SQLite.
    Ints(Vec<i64>),
}

impl Param<'_> {
    /// Refuses what only one engine would take: U+0000 is no text in Postgres.
    pub(crate) fn check(&self, doing: &'static str) -> Result<(), StoreError> {
        let holds_nul = match self {
            Self::Text(text) | Self::OptText(Some(text)) => text.contains('\0'),
            Self::Owned(text) => text.contains('\0'),
            Self::Texts(texts) => texts.iter().any(|text| text.contains('\0')),
            _ => false,
        };
        if holds_nul {
            return Err(StoreError::Invalid {
                doing,
                what: "text with U+0000",
            });
        }
        Ok(())
    }

    /// The value on its own, for the writer thread of SQLite.
    pub(crate) fn to_lite(&self) -> LiteValue {
        match self {
            Self::Text(text) | Self::OptText(Some(text)) => LiteValue::Text((*text).to_owned()),
            Self::Owned(text) => LiteValue::Text(text.clone()),
            Self::Int(int) | Self::OptInt(Some(int)) => LiteValue::Integer(*int),
            Self::Bool(bool) | Self::OptBool(Some(bool)) => LiteValue::Integer(i64::from(*bool)),
            Self::Bytes(bytes) | Self::OptBytes(Some(bytes)) => LiteValue::Blob(bytes.to_vec()),
            Self::Blob(bytes) => LiteValue::Blob(bytes.clone()),
            Self::Blobs(blobs) => {
                let hex: Vec<String> = blobs.iter().map(|blob| hex_encode(blob)).collect();
                LiteValue::Text(json_array(&hex))
            }
            Self::Texts(texts) => LiteValue::Text(json_array(texts)),
            Self::Ints(ints) => LiteValue::Text(json_array(ints)),
            Self::OptText(None)
            | Self::OptInt(None)
            | Self::OptBool(None)
            | Self::OptBytes(None) => LiteValue::Null,
        }
    }
}

fn json_array<T: serde::Serialize>(values: &[T]) -> String {
    // Text and integers always serialize.
    serde_json::to_string(values).unwrap_or_default()
}

impl fmt::Debug for Param<'_> {
    /// The kind only: parameters may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text(_) | Self::OptText(_) | Self::Owned(_) => "Text(..)",
            Self::Int(_) | Self::OptInt(_) => "Int(..)",
            Self::Bool(_) | Self::OptBool(_) => "Bool(..)",
            Self::Bytes(_) | Self::OptBytes(_) | Self::Blob(_) => "Bytes(..)",
            Self::Blobs(_) => "Blobs(..)",
            Self::Texts(_) => "Texts(..)",
            Self::Ints(_) => "Ints(..)",
        })
    }
}

impl rusqlite::ToSql for Param<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Text(text) | Self::OptText(Some(text)) => {
                ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes()))
            }
            Self::Owned(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
            Self::Bytes(bytes) | Self::OptBytes(Some(bytes)) => {
                ToSqlOutput::Borrowed(ValueRef::Blob(bytes))
            }
            Self::Blob(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
            other => ToSqlOutput::Owned(other.to_lite()),
        })
    }
}

type ToSqlResult = Result<IsNull, Box<dyn std::error::Error + Sync + Send>>;

impl ToSql for Param<'_> {
    fn to_sql(&self, ty: &Type, out: &mut BytesMut) -> ToSqlResult {
        match self {
            Self::Text(text) | Self::OptText(Some(text)) => text_to_sql(text, ty, out),
            Self::Owned(text) => text_to_sql(text, ty, out),
            Self::Int(int) | Self::OptInt(Some(int)) => int_to_sql(*int, ty, out),
            Self::Bool(bool) | Self::OptBool(Some(bool)) if *ty == Type::BOOL => {
                bool.to_sql(ty, out)
            }
            Self::Bytes(bytes) | Self::OptBytes(Some(bytes)) if *ty == Type::BYTEA => {
                bytes.to_sql(ty, out)
            }
            Self::Blob(bytes) if *ty == Type::BYTEA => bytes.as_slice().to_sql(ty, out),
            Self::Blobs(blobs) if *ty == Type::BYTEA_ARRAY => blobs.to_sql(ty, out),
            Self::Texts(texts) if *ty == Type::TEXT_ARRAY => texts.to_sql(ty, out),
            Self::Ints(ints) if *ty == Type::INT8_ARRAY => ints.to_sql(ty, out),
            Self::OptText(None)
            | Self::OptInt(None)
            | Self::OptBool(None)
            | Self::OptBytes(None) => Ok(IsNull::Yes),
            other => Err(format!("{other:?} does not fit {ty}").into()),
        }
    }

    fn accepts(_: &Type) -> bool {
        true // what does not fit is an error of `to_sql`, which knows the value
    }

    to_sql_checked!();
}

fn text_to_sql(text: &str, ty: &Type, out: &mut BytesMut) -> ToSqlResult {
    if <&str as ToSql>::accepts(ty) {
        text.to_sql(ty, out)
    } else {
        Err(format!("text does not fit {ty}").into())
    }
}

fn int_to_sql(int: i64, ty: &Type, out: &mut BytesMut) -> ToSqlResult {
    match *ty {
        Type::INT8 => int.to_sql(ty, out),
        Type::INT4 => i32::try_from(int)?.to_sql(ty, out),
        Type::INT2 => i16::try_from(int)?.to_sql(ty, out),
        _ => Err(format!("an integer does not fit {ty}").into()),
    }
}

impl<'a> From<&'a str> for Param<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a String> for Param<'a> {
    fn from(text: &'a String) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a Arc<str>> for Param<'a> {
    fn from(text: &'a Arc<str>) -> Self {
        Self::Text(text)
    }
}

impl From<String> for Param<'_> {
    fn from(text: String) -> Self {
        Self::Owned(text)
    }
}

impl<'a> From<Option<&'a str>> for Param<'a> {
    fn from(text: Option<&'a str>) -> Self {
        Self::OptText(text)
    }
}

impl<'a> From<&'a Option<String>> for Param<'a> {
    fn from(text: &'a Option<String>) -> Self {
        Self::OptText(text.as_deref())
    }
}

impl From<i64> for Param<'_> {
    fn from(int: i64) -> Self {
        Self::Int(int)
    }
}

impl From<i32> for Param<'_> {
    fn from(int: i32) -> Self {
        Self::Int(i64::from(int))
    }
}

impl From<u32> for Param<'_> {
    fn from(int: u32) -> Self {
        Self::Int(i64::from(int))
    }
}

impl From<Option<i64>> for Param<'_> {
    fn from(int: Option<i64>) -> Self {
        Self::OptInt(int)
    }
}

impl From<bool> for Param<'_> {
    fn from(bool: bool) -> Self {
        Self::Bool(bool)
    }
}

impl<'a> From<&'a [u8]> for Param<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<&'a Vec<u8>> for Param<'a> {
    fn from(bytes: &'a Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl<'a> From<Option<&'a [u8]>> for Param<'a> {
    fn from(bytes: Option<&'a [u8]>) -> Self {
        Self::OptBytes(bytes)
    }
}

impl From<Vec<u8>> for Param<'_> {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Blob(bytes)
    }
}

impl From<Timestamp> for Param<'_> {
    fn from(at: Timestamp) -> Self {
        Self::Int(at.unix_micros())
    }
}

impl From<Option<Timestamp>> for Param<'_> {
    fn from(at: Option<Timestamp>) -> Self {
        Self::OptInt(at.map(Timestamp::unix_micros))
    }
}

macro_rules! from_ids {
    ($($id:ident)+) => {$(
        impl<'a> From<&'a $id> for Param<'a> {
            fn from(id: &'a $id) -> Self {
                Self::Text(id.as_str())
            }
        }

        impl<'a> From<Option<&'a $id>> for Param<'a> {
            fn from(id: Option<&'a $id>) -> Self {
                Self::OptText(id.map($id::as_str))
            }
        }
    )+};
}

from_ids! {
    ZoneId ApplicationId ResourceId ProviderId SessionId DelegationId RecordId Jti Kid EventId
    RequestId ApprovalId WorkloadId
}

/// `params![a, b, c]`: an array of [`Param`] made of anything that converts.
#[macro_export]
macro_rules! params {
    ($($value:expr),* $(,)?) => {
        [$($crate::Param::from($value)),*]
    };
}
