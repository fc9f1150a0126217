//! Entry points of the fuzz targets.

use crate::registry::push::Notice;
use crate::registry::{Features, answers};
use crate::route::Place;
use crate::{identity, peers};

/// An identity file: what loads saves to something that loads to the same key.
pub fn identity_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(loaded) = identity::parse(text) {
        let saved = identity::text(&loaded);
        let saved = std::str::from_utf8(&saved).expect("JSON is UTF-8");
        let again = identity::parse(saved).expect("what we write we can read");
        assert_eq!(loaded.public_key(), again.public_key());
    }
}

/// The registry's side of a connection: answers of all kinds.
pub fn registry_answers(input: &[u8]) {
    for answer in answers(input) {
        let _ = Features::of(&answer, 1_795_217_600);
        let _ = Notice::of(&answer);
        let _ = Place::of(7, &answer);
    }
}

/// What routers answer that are asked for a port.
pub fn router_answers(input: &[u8]) {
    crate::mapping::answers(input);
}

/// A peers file: what loads saves to something that loads to the same.
pub fn peers_file(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(saved) = peers::resaved(text) {
        assert_eq!(peers::resaved(&saved).as_deref(), Some(saved.as_str()), "what we write we can read");
    }
}
