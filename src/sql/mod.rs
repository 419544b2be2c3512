//! The SQL surface: one Rust function per SQL function, one definition per table.

use crate::error::Result;
use crate::host::Registrar;

/// Registers every function and table on a connection that loads the extension.
pub fn register(_db: &Registrar) -> Result<()> {
    Ok(())
}
