//! forrest
