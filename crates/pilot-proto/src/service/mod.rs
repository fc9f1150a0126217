//! Formats and state machines of the built-in services (spec 06).
