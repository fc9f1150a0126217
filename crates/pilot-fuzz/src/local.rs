//! The daemon's socket.

use pilot_ipc::frame::Decoder;
use pilot_ipc::request::Request;

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
