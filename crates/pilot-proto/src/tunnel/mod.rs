//! Key exchange, sessions, replay windows (spec 02).
