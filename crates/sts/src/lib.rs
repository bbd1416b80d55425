//! The STS.

pub mod form;
mod lockout;
mod secrets;
