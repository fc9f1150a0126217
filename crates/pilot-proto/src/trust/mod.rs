//! The trust handshake (spec 06 section 2).
