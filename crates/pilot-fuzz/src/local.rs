//! The daemon's socket and its configuration file.

use pilot_daemon::config::{ConfigFile, Env, Settings};
use pilot_ipc::frame::Decoder;
use pilot_ipc::request::Request;
use std::collections::BTreeMap;
use std::path::Path;

/// Frames from a local client, and the requests in them.
pub fn ipc(input: &[u8]) {
    let mut decoder = Decoder::default();
    for chunk in input.chunks(7) {
        decoder.extend(chunk);
        while let Ok(Some(frame)) = decoder.next_frame() {
            if let Ok(request) = Request::parse(frame.command, frame.body) {
                let (command, body) = request.encode();
                let again = Request::parse(command as u8, body).expect("our own encoding parses");
                assert_eq!(request, again);
            }
        }
    }
}

/// A configuration file and the settings it makes.
pub fn config_file(input: &[u8]) {
    let Ok(file) = ConfigFile::parse(Path::new("config.json"), input) else { return };
    let env = Env::from_pairs([("HOME".to_owned(), "/home/agent".to_owned())]);
    let settings = Settings::new(BTreeMap::new(), &env, &file);
    let _ = settings.notices();
    if let Ok(daemon) = settings.daemon("127.0.0.1:9000", None) {
        assert!(daemon.node.tags.len() <= 10);
    }
}
