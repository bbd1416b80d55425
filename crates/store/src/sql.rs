//! Statements as values. Every statement is registered, so that one test can PREPARE all of them
//! on both engines: our compile-time check.

/// One statement. Parameters are `$1`, `$2`, … and bind by number on both engines.
#[derive(Clone, Copy, Debug)]
pub struct Sql {
    /// What it does, for errors and logs: `module::NAME`.
    pub name: &'static str,
    /// Text for Postgres.
    pub pg: &'static str,
    /// Text for SQLite.
    pub lite: &'static str,
}

/// Declares the statements of a repository.
///
/// ```ignore
/// statements! { pub(crate) mod sql {
///     GET = "SELECT id FROM zones WHERE id = $1";
///     FIND = pg: "… WHERE id = ANY($1)", lite: "… WHERE id IN (SELECT value FROM json_each($1))";
/// } }
/// ```
///
/// gives `sql::GET`, `sql::FIND` and `sql::ALL`; name `ALL` in the registry in `lib.rs`. Texts may
/// be `concat!(…)`. Traps: SQLite has no `= ANY`, `SKIP LOCKED`, `now()` or data-modifying CTEs;
/// `SUM` of a BIGINT is NUMERIC in Postgres, so cast it; an optional filter is
/// `(CAST($1 AS TEXT) IS NULL OR column = $1)`.
#[macro_export]
macro_rules! statements {
    ($vis:vis mod $module:ident { $($body:tt)* }) => {
        $vis mod $module {
            #[allow(unused_imports, reason = "column lists made by macros of the parent")]
            use super::*;
            $crate::statements!(@items [] $($body)*);
        }
    };
    (@items [$($done:ident)*]) => {
        /// Every statement of this module.
        pub(crate) const ALL: &[&$crate::Sql] = &[$(&$done),*];
    };
    (@items [$($done:ident)*] $(#[$doc:meta])* $name:ident = pg: $pg:expr, lite: $lite:expr; $($rest:tt)*) => {
        $(#[$doc])*
        pub(crate) const $name: $crate::Sql = $crate::Sql {
            name: concat!(module_path!(), "::", stringify!($name)),
            pg: $pg,
            lite: $lite,
        };
        $crate::statements!(@items [$($done)* $name] $($rest)*);
    };
    (@items [$($done:ident)*] $(#[$doc:meta])* $name:ident = $text:expr; $($rest:tt)*) => {
        $(#[$doc])*
        pub(crate) const $name: $crate::Sql = $crate::Sql {
            name: concat!(module_path!(), "::", stringify!($name)),
            pg: $text,
            lite: $text,
        };
        $crate::statements!(@items [$($done)* $name] $($rest)*);
    };
}
