//! Runs the unit tests of what the examples share. An example that is tested itself would be built as a test
//! alone, and `command_line.rs` runs the programs.

#[path = "../examples/common/mod.rs"]
mod common;
