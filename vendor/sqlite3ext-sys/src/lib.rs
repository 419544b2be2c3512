//! Types and constants of `sqlite3ext.h`, as `regenerate.sh` made them. No function is linked:
//! every call goes through the `sqlite3_api_routines` pointer the host hands to an extension.
#![allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(unsafe_op_in_unsafe_fn, clippy::all)]

mod bindings;
pub use bindings::*;
