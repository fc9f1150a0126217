#!/usr/bin/env python3
"""What floods leave standing: streams, newcomers and memory while one sender floods as fast as it can.

    cargo build --release -p pilotctl -p pilot-flood
    scripts/flood.py [--bin target/release] [--secs 5] [--kinds pila,syn,connect,discover] [--rounds 3]

Needs root, and runs in three network namespaces of its own: the victim's host (rendezvous and a public daemon), an honest
host, and the flooder's, which has 131,072 addresses. Each flood runs twice, at an unrelated socket of the victim's host
and at the victim: `pila` and `syn` at the daemon's socket, `connect` at the registry, `discover` at the beacon. Meanwhile
a stream of 200 Mbit/s goes to the victim's daemon, and then fresh nodes start on the honest host, register, and reach the
daemon. Prints a Markdown table, and exits with 1 if a stream keeps less than 80 %, a newcomer takes more than 1 s, or
memory grows by more than 64 MiB.
"""
import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

HERE, FLOODED, FLOODER = "10.77.1.1", "10.77.2.1", "10.77.2.2"
HONEST = "10.77.1.2"
SPOOFED, BITS = "198.18.0.0", 17
REGISTRY, BEACON, SINK, DAEMON = 9000, 9001, 9999, 4100
MBIT = 200
LIMITS = {"ratio": 0.8, "newcomer_ms": 1000.0, "growth_mib": 64.0}


def sh(command):
    subprocess.run(command, shell=True, check=True)


def host(name, *command):
    return ["ip", "netns", "exec", name, *command]


def rss_mib(pid):
    with open(f"/proc/{pid}/status") as f:
        return next(int(l.split()[1]) for l in f if l.startswith("VmRSS")) / 1024


def cpu_secs(pid):
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Lab:
    def __init__(self, args):
        self.args, self.root, self.processes = args, tempfile.mkdtemp(prefix="pilot-flood-"), []
        tag = os.getpid()
        self.v, self.h, self.f = f"pfv{tag}", f"pfh{tag}", f"pff{tag}"
        self.ctl, self.tool = (os.path.abspath(os.path.join(args.bin, name)) for name in ("pilotctl", "pilot-flood"))
        for name in (self.ctl, self.tool):
            if not os.path.exists(name):
                sys.exit(f"flood.py: {name} is missing: cargo build --release -p pilotctl -p pilot-flood")
        for name in (self.v, self.h, self.f):
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
        for other, near, far, link in ((self.h, HERE, HONEST, "h"), (self.f, FLOODED, FLOODER, "f")):
            sh(f"ip -n {self.v} link add {link}0 type veth peer name {link}1 netns {other}")
            sh(f"ip -n {self.v} addr add {near}/24 dev {link}0 && ip -n {self.v} link set {link}0 up")
            sh(f"ip -n {other} addr add {far}/24 dev {link}1 && ip -n {other} link set {link}1 up")
            sh(f"ip -n {other} route add default via {near}")
        # What is sent to the spoofed addresses goes back to the flooder, which owns them for TCP.
        sh(f"ip -n {self.v} route add {SPOOFED}/{32 - BITS} via {FLOODER}")
        sh(f"ip -n {self.f} route add local {SPOOFED}/{32 - BITS} dev lo")
        for name in (self.v, self.f):
            sh(f"ip netns exec {name} sh -c 'for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done'")

    def start(self, name, *command, env=None):
        log = open(os.path.join(self.root, f"log{len(self.processes)}"), "w")
        process = subprocess.Popen(host(name, *command), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=log, text=True)
        self.processes.append(process)
        return process

    def daemon(self, name, at, label):
        home = os.path.join(self.root, label)
        os.makedirs(home, mode=0o700)
        socket = os.path.join(home, "pilot.sock")
        env = {"PATH": os.environ["PATH"], "HOME": home, "PILOT_SOCKET": socket}
        process = self.start(name, self.ctl, "daemon", "start", "--foreground", "--registry", f"{HERE}:{REGISTRY}",
                             "--beacon", f"{HERE}:{BEACON}", "--listen", f"{at}:{DAEMON}", "--public", "--socket",
                             socket, env=env)
        for _ in range(200):
            done = subprocess.run(host(name, self.ctl, "info", "--json"), env=env, capture_output=True, text=True)
            if done.returncode == 0:
                return process, socket, json.loads(done.stdout)["data"]
            time.sleep(0.05)
        raise RuntimeError(f"daemon {label} does not start; see {self.root}")

    def tool_run(self, name, *options):
        return self.start(name, self.tool, *map(str, options))

    def result(self, process, limit=60):
        out, _ = process.communicate(timeout=limit)
        if process.returncode != 0:
            raise RuntimeError(f"{process.args[4:6]} failed; see the logs in {self.root}")
        return json.loads(out)

    def flood(self, kind, aim, node, secs):
        if kind == "syn":
            to = f"{FLOODED}:{DAEMON}" if aim == "victim" else f"{FLOODED}:{SINK}"
            # A registered node; its daemon-side address is that of the flooded link.
            return self.tool_run(self.f, "syn", "--victim", f"{HERE}:{DAEMON}", "--to", to.replace(FLOODED, HERE),
                                 "--node", node, "--registry", f"{HERE}:{REGISTRY}", "--secs", secs)
        port = {"pila": DAEMON, "connect": REGISTRY, "discover": BEACON}[kind] if aim == "victim" else SINK
        return self.tool_run(self.f, kind, "--to", f"{HERE}:{port}", "--from", SPOOFED, "--bits", BITS, "--node",
                             node, "--secs", secs)

    def stream(self, sender, receiver, address, secs, port):
        taking = self.tool_run(self.v, "receive", "--socket", receiver, "--port", port, "--secs", secs)
        time.sleep(0.3)
        sending = self.tool_run(self.h, "send", "--socket", sender, "--to", address, "--port", port, "--mbit", MBIT,
                                "--secs", secs)
        return self.result(taking)["mbit_s"], self.result(sending)["dial_ms"]

    def newcomers(self, address, count):
        return self.result(self.tool_run(self.h, "newcomer", "--registry", f"{HERE}:{REGISTRY}", "--beacon",
                                         f"{HERE}:{BEACON}", "--to", address, "--count", count), 120)

    def close(self, keep):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(5)
                except subprocess.TimeoutExpired:
                    process.kill()
        for name in (self.v, self.h, self.f):
            subprocess.run(["ip", "netns", "del", name])
        if keep:
            print(f"logs: {self.root}", file=sys.stderr)
        else:
            shutil.rmtree(self.root)


def run(lab, args):
    rendezvous = lab.start(lab.v, lab.ctl, "rendezvous", "start", "--foreground", "--registry-addr",
                           f"0.0.0.0:{REGISTRY}", "--beacon-addr", f"0.0.0.0:{BEACON}", "--store",
                           os.path.join(lab.root, "registry.db"), env={"PATH": os.environ["PATH"], "HOME": lab.root})
    time.sleep(1)
    victim, victim_socket, info = lab.daemon(lab.v, HERE, "victim")
    _, sender, _ = lab.daemon(lab.h, HONEST, "sender")
    address, node = info["address"], info["node_id"]
    lab.tool_run(lab.v, "sink", "--at", f"0.0.0.0:{SINK}", "--secs", 900)
    watched = {"daemon": victim.pid, "rendezvous": rendezvous.pid}
    port = 2000
    quiet, _ = lab.stream(sender, victim_socket, address, args.secs, port)
    calm = lab.newcomers(address, 3)
    print(f"no flood: {quiet:.0f} Mbit/s; newcomers connected after "
          f"{max(n['connected_ms'] for n in calm):.0f} ms at most\n")
    print("| flood | datagrams or connections per second, at the victim | stream, Mbit/s: unrelated socket | victim | "
          "ratio (median) | newcomer connected, ms (max) | resident memory, MiB: before | highest |")
    print("|---|---|---|---|---|---|---|---|")
    good = True
    for kind in args.kinds.split(","):
        before = {name: rss_mib(pid) for name, pid in watched.items()}
        rates, got, took, used = [], {"unrelated": [], "victim": []}, [], []
        peak = dict(before)
        for _ in range(args.rounds):
            for aim in ("unrelated", "victim"):
                port += 1
                flood = lab.flood(kind, aim, node, args.secs + 12 if aim == "victim" else args.secs + 2)
                time.sleep(1)
                busy = {name: cpu_secs(pid) for name, pid in watched.items()}
                mbit, _ = lab.stream(sender, victim_socket, address, args.secs, port)
                got[aim].append(mbit)
                if aim == "victim":
                    used.append({n: (cpu_secs(p) - busy[n]) / (args.secs + 0.5) for n, p in watched.items()})
                    took += [n["connected_ms"] for n in lab.newcomers(address, 3)]
                    for name, pid in watched.items():
                        peak[name] = max(peak[name], rss_mib(pid))
                result = lab.result(flood)
                if aim == "victim":
                    rates.append(result["per_second"])
        ratio = statistics.median(v / u for u, v in zip(got["unrelated"], got["victim"]))
        growth = max(peak[n] - before[n] for n in watched)
        cell = lambda values: f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
        memory = lambda values: ", ".join(f"{n} {v:.1f}" for n, v in values.items())
        print(f"| {kind} | {cell(rates)} | {cell(got['unrelated'])} | {cell(got['victim'])} | {ratio:.2f} | "
              f"{max(took):.0f} | {memory(before)} | {memory(peak)} |", flush=True)
        print(f"{kind}: processor share {used}", file=sys.stderr)
        good &= ratio >= LIMITS["ratio"] and max(took) <= LIMITS["newcomer_ms"] and growth <= LIMITS["growth_mib"]
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default="target/release")
    parser.add_argument("--secs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", default="pila,syn,connect,discover")
    parser.add_argument("--keep", action="store_true", help="keep the logs")
    args = parser.parse_args()
    lab = Lab(args)
    good = False
    try:
        good = run(lab, args)
    finally:
        lab.close(args.keep or not good)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
