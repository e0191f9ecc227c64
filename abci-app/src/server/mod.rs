//! The ABCI socket server.
