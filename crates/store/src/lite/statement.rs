//! One statement on one SQLite connection: binding by number, rows, and errors that carry the same
//! names as those of Postgres.

use std::sync::Arc;

use rusqlite::{Connection, ErrorCode, ffi};

use crate::error::StoreError;
use crate::row::{Row, Value};
use crate::sql::Sql;

pub(crate) fn query(
    connection: &Connection,
    sql: &Sql,
    params: &[impl rusqlite::ToSql],
) -> Result<Vec<Row>, StoreError> {
    let fails = |failure| error(connection, failure, sql.name);
    let mut statement = connection.prepare_cached(sql.lite).map_err(fails)?;
    let columns: Arc<[String]> = statement.column_names().map(str::to_owned).collect();
    bind(&mut statement, sql, params, connection)?;
    let mut found = statement.raw_query();
    let mut rows = Vec::new();
    while let Some(row) = found.next().map_err(fails)? {
        let values = (0..columns.len())
            .map(|at| Value::from_lite(row.get_ref(at).map_err(fails)?))
            .collect::<Result<_, _>>()?;
        rows.push(Row::new(Arc::clone(&columns), values));
    }
    Ok(rows)
}

pub(crate) fn execute(
    connection: &Connection,
    sql: &Sql,
    params: &[impl rusqlite::ToSql],
) -> Result<u64, StoreError> {
    let fails = |failure| error(connection, failure, sql.name);
    let mut statement = connection.prepare_cached(sql.lite).map_err(fails)?;
    bind(&mut statement, sql, params, connection)?;
    let changed = statement.raw_execute().map_err(fails)?;
    Ok(u64::try_from(changed).unwrap_or(u64::MAX))
}

/// One statement for each row. Where a parameter stands is looked up once, not once a row.
pub(crate) fn execute_rows(
    connection: &Connection,
    sql: &Sql,
    rows: &[Vec<impl rusqlite::ToSql>],
) -> Result<u64, StoreError> {
    let fails = |failure| error(connection, failure, sql.name);
    let mut statement = connection.prepare_cached(sql.lite).map_err(fails)?;
    let width = rows.first().map_or(0, Vec::len);
    let places = places(&statement, sql, width, connection)?;
    let mut total = 0;
    for row in rows {
        if row.len() != width {
            return Err(miscounted(sql, "the width of a row"));
        }
        for (place, param) in places.iter().zip(row) {
            statement.raw_bind_parameter(*place, param).map_err(fails)?;
        }
        total += statement.raw_execute().map_err(fails)?;
    }
    Ok(u64::try_from(total).unwrap_or(u64::MAX))
}

pub(crate) fn prepare(connection: &Connection, sql: &Sql) -> Result<(), StoreError> {
    connection
        .prepare(sql.lite)
        .map(drop)
        .map_err(|failure| error(connection, failure, sql.name))
}

/// Binds `$1` to the first parameter wherever it stands: left alone, SQLite numbers `$N` by first
/// appearance, so `SELECT $2, $1` would swap its values.
fn bind(
    statement: &mut rusqlite::Statement<'_>,
    sql: &Sql,
    params: &[impl rusqlite::ToSql],
    connection: &Connection,
) -> Result<(), StoreError> {
    let fails = |failure| error(connection, failure, sql.name);
    let places = places(statement, sql, params.len(), connection)?;
    for (place, param) in places.iter().zip(params) {
        statement.raw_bind_parameter(*place, param).map_err(fails)?;
    }
    Ok(())
}

/// What SQLite calls `$1` to `$width`.
fn places(
    statement: &rusqlite::Statement<'_>,
    sql: &Sql,
    width: usize,
    connection: &Connection,
) -> Result<Vec<usize>, StoreError> {
    let mut places = Vec::with_capacity(width);
    for at in 1..=width {
        let name = format!("${at}");
        let place = statement
            .parameter_index(&name)
            .map_err(|failure| error(connection, failure, sql.name))?;
        places.push(place.ok_or_else(|| miscounted(sql, &name))?);
    }
    if statement.parameter_count() == width {
        Ok(places)
    } else {
        Err(miscounted(sql, "its last parameter"))
    }
}

fn miscounted(sql: &Sql, which: &str) -> StoreError {
    StoreError::Statement {
        doing: sql.name,
        source: format!("the statement and its parameters disagree about {which}").into(),
    }
}

pub(crate) fn error(
    connection: &Connection,
    error: rusqlite::Error,
    doing: &'static str,
) -> StoreError {
    let rusqlite::Error::SqliteFailure(code, message) = &error else {
        return StoreError::Statement {
            doing,
            source: error.into(),
        };
    };
    match code.extended_code {
        ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY => {
            let message = message.as_deref().unwrap_or_default();
            return StoreError::Conflict {
                constraint: index_named_by(connection, message),
            };
        }
        ffi::SQLITE_CONSTRAINT_FOREIGNKEY => return StoreError::Reference { doing },
        _ => {}
    }
    match code.code {
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => StoreError::Busy { doing },
        ErrorCode::SystemIoFailure
        | ErrorCode::DiskFull
        | ErrorCode::CannotOpen
        | ErrorCode::ReadOnly
        | ErrorCode::OutOfMemory
        | ErrorCode::OperationInterrupted => StoreError::Unreachable {
            doing,
            source: error.into(),
        },
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => {
            StoreError::corrupt(error.to_string())
        }
        ErrorCode::TooBig => StoreError::Invalid {
            doing,
            what: "a value of this size",
        },
        _ => StoreError::Statement {
            doing,
            source: error.into(),
        },
    }
}

/// SQLite names the columns (`UNIQUE constraint failed: zones.slug`), Postgres the index: looks the
/// index up, so that callers match on one name.
fn index_named_by(connection: &Connection, message: &str) -> String {
    let columns = message
        .rsplit_once(": ")
        .map_or(message, |(_, columns)| columns);
    let mut table = "";
    let mut wanted: Vec<&str> = Vec::new();
    for part in columns.split(", ") {
        let Some((owner, column)) = part.split_once('.') else {
            return columns.to_owned();
        };
        table = owner;
        wanted.push(column);
    }
    wanted.sort_unstable();
    let named = unique_index(connection, table, &wanted).ok().flatten();
    // The index of a primary key has a name of SQLite's own making, or none.
    match named {
        Some(name) if !name.starts_with("sqlite_autoindex_") => name,
        _ => format!("{table}_pkey"),
    }
}

fn unique_index(
    connection: &Connection,
    table: &str,
    wanted: &[&str],
) -> rusqlite::Result<Option<String>> {
    let mut indexes =
        connection.prepare_cached("SELECT name FROM pragma_index_list($1) WHERE \"unique\" = 1")?;
    let names: Vec<String> = indexes
        .query_map([table], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let mut columns =
        connection.prepare_cached("SELECT name FROM pragma_index_info($1) ORDER BY name")?;
    for name in names {
        let of_index: Vec<String> = columns
            .query_map([&name], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        if of_index == wanted {
            return Ok(Some(name));
        }
    }
    Ok(None)
}
