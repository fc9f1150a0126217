#!/usr/bin/env python3
"""Our daemon and CLI against the reference 1.18.0, side by side in one run; prints a Markdown table.

    cargo build --release
    scripts/bench.py --venv VENV [--ours target/release/pilotctl] [--runs 5]

VENV is a Python environment with pilotprotocol==1.18.0 (scripts/test.sh makes one in target/reference-venv).
Needs root: everything runs in a fresh network namespace that holds nothing but loopback, with empty homes and the
reference's vendor services off. Both makes use our rendezvous, since the reference ships none. Takes about five
minutes, most of it waiting for the reference's handshakes.
"""
import argparse
import glob
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

REGISTRY, BEACON = "127.0.0.1:9000", "127.0.0.1:9001"


class Make:
    def __init__(self, name, ctl):
        self.name, self.ctl = name, ctl


class Home:
    """A home directory with a daemon of one make."""

    port = 4100

    def __init__(self, make, root, name, flags=()):
        self.make, self.name, self.flags = make, name, list(flags)
        self.dir = os.path.join(root, f"{make.name}-{name}")
        os.makedirs(os.path.join(self.dir, ".pilot"), mode=0o700)
        self.socket = os.path.join(self.dir, "pilot.sock")
        self.env = {
            "PATH": os.environ["PATH"], "HOME": self.dir, "PILOT_SOCKET": self.socket,
            "PILOT_REGISTRY": REGISTRY, "PILOT_BEACON": BEACON, "PILOT_NO_SKILLINJECT": "1",
        }
        Home.port += 1
        config = {"registry": REGISTRY, "beacon": BEACON, "socket": self.socket}
        if make.name == "reference":
            config.update(no_skillinject=True, telemetry_url="", motd_feed_url="")
        with open(os.path.join(self.dir, ".pilot", "config.json"), "w") as f:
            json.dump(config, f)
        self.listen = f"127.0.0.1:{Home.port}"

    def run(self, *args, check=True, timeout=180):
        done = subprocess.run([self.make.ctl, *args, "--json"], env=self.env, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=timeout)
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.make.name} {args}: {done.stderr}")
        return json.loads(done.stdout)["data"] if done.returncode == 0 else None

    def start(self):
        begin = time.perf_counter()
        self.run("daemon", "start", "--registry", REGISTRY, "--beacon", BEACON, "--listen", self.listen,
                 "--hostname", f"{self.make.name}-{self.name}", "--email", f"{self.name}@example.com",
                 "--socket", self.socket, *self.flags)
        return time.perf_counter() - begin

    def stop(self):
        begin = time.perf_counter()
        self.run("daemon", "stop", check=False)
        return time.perf_counter() - begin

    def pid(self):
        return self.run("daemon", "status")["pid"]

    def node(self):
        return self.run("info")["node_id"]

    def trusts(self, node):
        return any(p["node_id"] == node for p in self.run("trust")["trusted"] or [])


def rss_mb(pid):
    with open(f"/proc/{pid}/status") as f:
        line = next(l for l in f if l.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def cpu_and_switches(pid):
    ticks = switches = 0
    for task in glob.glob(f"/proc/{pid}/task/*"):
        try:
            with open(f"{task}/stat") as f:
                fields = f.read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
            with open(f"{task}/status") as f:
                switches += sum(int(l.split()[1]) for l in f if "ctxt_switches" in l)
        except FileNotFoundError:
            pass
    return ticks / os.sysconf("SC_CLK_TCK"), switches


def until(condition, limit):
    begin = time.perf_counter()
    while not condition():
        if time.perf_counter() - begin > limit:
            return None
        time.sleep(0.002)
    return time.perf_counter() - begin


def measure(make, root, runs, trust_runs, idle_secs):
    out = {}
    homes = []
    try:
        starts, stops = [], []
        one = Home(make, root, "start")
        for _ in range(runs):
            starts.append(one.start())
            stops.append(one.stop())
        out["start_s"], out["stop_s"] = starts, stops

        out["trust_s"] = []
        for run in range(trust_runs):
            a = Home(make, root, f"ask{run}")
            b = Home(make, root, f"auto{run}", ["--trust-auto-approve"])
            homes += [a, b]
            a.start()
            b.start()
            a_id, b_id = a.node(), b.node()
            begin = time.perf_counter()
            a.run("handshake", str(b_id), "bench")
            if until(lambda: a.trusts(b_id) and b.trusts(a_id), 150) is None:
                raise RuntimeError(f"{make.name}: no trust within 150 s")
            out["trust_s"].append(time.perf_counter() - begin)
            if run + 1 < trust_runs:
                a.stop()
                b.stop()

        name = f"{make.name}-{b.name}"
        out["rss_start_mb"] = [rss_mb(a.pid())]
        a.run("ping", name, "--count", "1")
        rtts = []
        for _ in range(3):
            rtts += [r["rtt_ms"] for r in a.run("ping", name, "--count", "5")["results"] if "rtt_ms" in r]
        out["ping_ms"] = rtts
        out["bench_mb_s"] = [a.run("bench", name, "64")["total_mbps"] for _ in range(runs)]
        pid = a.pid()
        cpu, switches = cpu_and_switches(pid)
        time.sleep(idle_secs)
        cpu2, switches2 = cpu_and_switches(pid)
        out["idle_cpu_percent"] = [100 * (cpu2 - cpu) / idle_secs]
        out["idle_wakeups_per_s"] = [(switches2 - switches) / idle_secs]
        out["rss_used_mb"] = [rss_mb(a.pid()), rss_mb(b.pid())]
        return out
    finally:
        for home in homes:
            home.stop()


def inside(args):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    reference = glob.glob(os.path.join(args.venv, "lib/python3*/site-packages/pilotprotocol/bin/pilotctl"))
    if not reference:
        sys.exit(f"bench.py: pilotprotocol==1.18.0 is not installed in {args.venv}")
    makes = [Make("ours", os.path.abspath(args.ours)), Make("reference", reference[0])]
    root = tempfile.mkdtemp(prefix="pilot-bench-")
    log = open(os.path.join(root, "rendezvous.log"), "w")
    rendezvous = subprocess.Popen(
        [makes[0].ctl, "rendezvous", "start", "--foreground", "--registry-addr", REGISTRY, "--beacon-addr", BEACON,
         "--store", os.path.join(root, "registry.db")],
        env={"PATH": os.environ["PATH"], "HOME": root}, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        time.sleep(0.5)
        results = {m.name: measure(m, root, args.runs, 3 if m.name == "ours" else 2, args.idle) for m in makes}
    finally:
        rendezvous.terminate()
        rendezvous.wait()
    shutil.rmtree(root)
    rows = [("start_s", "daemon start to registered, s"), ("stop_s", "daemon stop, s"),
            ("trust_s", "handshake to mutual trust, auto-approving private peer, s"),
            ("ping_ms", "ping, steady, ms"), ("bench_mb_s", "bench 64 MiB echo, MiB/s"),
            ("rss_start_mb", "resident memory after start, MiB"), ("rss_used_mb", "resident memory, idle after use, MiB"),
            ("idle_cpu_percent", "CPU of an idle daemon, %"), ("idle_wakeups_per_s", "context switches of an idle daemon, 1/s")]
    print("| Measure (median, min to max) | ours | reference 1.18.0 | ratio |")
    print("|---|---|---|---|")
    for key, label in rows:
        cells, medians = [], []
        for make in ("ours", "reference"):
            values = results[make][key]
            medians.append(statistics.median(values))
            cells.append(f"{medians[-1]:.3g} ({min(values):.3g} to {max(values):.3g})")
        ratio = f"{medians[0] / medians[1]:.3g}" if medians[1] else "-"
        print(f"| {label} | {cells[0]} | {cells[1]} | {ratio} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", required=True)
    parser.add_argument("--ours", default="target/release/pilotctl")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--idle", type=int, default=30, help="seconds to watch an idle daemon")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args)
        return
    sys.exit(subprocess.run(["unshare", "--net", sys.executable, os.path.abspath(__file__), *sys.argv[1:],
                             "--inside"]).returncode)


if __name__ == "__main__":
    main()
