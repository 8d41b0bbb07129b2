//! The built program as a person uses it: what it prints, how it exits, what it does to a terminal.

mod bench;
mod check;
mod docs;
mod doctor;
mod help;
mod images;
mod logging;
mod logs;
mod shell;
mod status;
