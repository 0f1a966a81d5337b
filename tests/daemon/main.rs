//! `ringback daemon` as management tools see it.

mod qmp;
mod queries;
mod reopen;
