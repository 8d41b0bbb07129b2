//! The client over real HTTP: against GitHub's published contract, and against a server on its bad
//! days, and against a stateful stand-in.

mod app_key;
mod contract;
mod http_server;
mod misbehaviour;
mod stories;
