//! A network namespace that holds nothing but loopback.

use std::process::{Child, Command, Stdio};

pub struct Holder(Child);

impl Holder {
    pub fn new() -> Holder {
        let mut child = Command::new("unshare")
            .args(["--net", "--kill-child", "--fork", "sh", "-c"])
            .arg("ip link set lo up && echo ready && exec sleep 900")
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) is installed");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout is piped");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("holder answers");
        assert_eq!(line, "ready\n", "network namespaces need root and iproute2");
        Holder(child)
    }

    /// Moves this thread, and what it starts from now on, into the namespace.
    pub fn enter(&self) {
        let file = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).expect("the holder lives");
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), kind)
            .expect("namespaces need root");
        let links = std::fs::read_to_string("/proc/thread-self/net/dev").expect("links are listed");
        let names: Vec<&str> =
            links.lines().skip(2).filter_map(|l| l.split(':').next()).map(str::trim).collect();
        assert!(names.contains(&"lo"), "{links}");
        assert!(!names.iter().any(|n| n.starts_with('e')), "not isolated: {names:?}");
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
