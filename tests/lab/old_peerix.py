#!/usr/bin/env python3
"""A machine that speaks only the protocol of the old peerix: a stand-in for compatibility tests.

It runs inside a lab host, needs its Nix store, and is both halves: it answers for what the store
has, and it is a substituter for the local Nix. Written from a description of what the old program
sends and expects, none of it is taken from there. Where the old program is strict or crude, so is
this one: a narinfo line without a colon breaks it, datagrams of other types it ignores, NARs have
no length, no ranges and the wrong content type.

usage: old_peerix.py [--port 12304] [--timeout 50]
"""

import argparse
import base64
import http.client
import http.server
import json
import os
import re
import socket
import socketserver
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

STORE = "/nix/store"
DATABASE = "/nix/var/nix/db/db.sqlite"
NIX32 = "0123456789abcdfghijklmnpqrsvwxyz"


def nix32(digest):
    """Nix's base 32 of a digest: its digits run from the last byte to the first."""
    count = (len(digest) * 8 + 4) // 5
    number = int.from_bytes(digest, "little")
    return "".join(NIX32[(number >> (5 * place)) & 31] for place in reversed(range(count)))


class Store:
    """What this machine has."""

    def narinfo(self, store_hash):
        """Text of the narinfo of the path with this hash, or None. In the field order of the old program."""
        if not re.fullmatch(r"[0-9a-z]{32}", store_hash):
            return None
        database = sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True)
        try:
            row = database.execute(
                "select id, path, hash, narSize, deriver, sigs from ValidPaths where path >= ? and path < ?",
                (f"{STORE}/{store_hash}-", f"{STORE}/{store_hash}.")).fetchone()
            if row is None:
                return None
            number, path, nar_hash, size, deriver, signatures = row
            references = sorted(os.path.basename(r) for r, in database.execute(
                "select path from Refs join ValidPaths on reference = id where referrer = ?", (number,)))
        finally:
            database.close()
        encoded = base64.b64encode(path.encode()).decode().replace("/", "_")
        lines = [
            f"StorePath: {path}", f"URL: local/nar/{encoded}.nar", "Compression: none",
            f"NarHash: sha256:{nix32(bytes.fromhex(nar_hash.removeprefix('sha256:')))}",
            f"NarSize: {size}", f"References: {' '.join(references)}",
        ]
        if deriver:
            lines.append(f"Deriver: {os.path.basename(deriver)}")
        lines += [f"Sig: {s}" for s in (signatures or "").split()]
        return "\n".join(lines) + "\n"

    def dump(self, encoded):
        """The process that writes the NAR of a path named as in our URLs; None for nonsense."""
        path = base64.b64decode(encoded.replace("_", "/")).decode()
        if os.path.dirname(path) != STORE or not os.path.lexists(path):
            return None
        return subprocess.Popen(["nix-store", "--dump", path], stdout=subprocess.PIPE)


class Lan:
    """The UDP half: one socket, from whose port the questions go out too."""

    def __init__(self, store, port, timeout):
        self._store, self._port, self._timeout = store, port, timeout
        self._waiting = {}
        self._networks = networks()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        self._socket.bind(("0.0.0.0", port))

    def listen(self):
        """Answer and take answers, for ever."""
        while True:
            datagram, (source, port) = self._socket.recvfrom(65536)
            if source in {own for own, _ in self._networks}:
                continue
            if datagram[:1] == b"\0":
                store_hash = datagram[5:].decode()
                if self._store.narinfo(store_hash) is not None:
                    path = f"local/{store_hash}.narinfo".encode()
                    self._socket.sendto(
                        b"\1" + datagram[1:5] + struct.pack(">I", self._port) + path, (source, port))
            elif datagram[:1] == b"\1":
                number, http_port = struct.unpack(">II", datagram[1:9])
                waiting = self._waiting.pop(number, None)
                if waiting is not None:
                    waiting.append((source, http_port, datagram[9:].decode()))

    def find(self, store_hash):
        """(address, HTTP port, path) of the first who says to have it, or None after the timeout."""
        number = struct.unpack(">I", os.urandom(4))[0]
        answer = self._waiting[number] = []
        for _, broadcast in self._networks:
            self._socket.sendto(b"\0" + struct.pack(">I", number) + store_hash.encode(), (broadcast, self._port))
        end = time.monotonic() + self._timeout
        while not answer and time.monotonic() < end:
            time.sleep(0.001)
        self._waiting.pop(number, None)
        return answer[0] if answer else None


def networks():
    """(own address, broadcast address) of each private network."""
    listed = json.loads(subprocess.run(["ip", "-j", "-4", "address"], capture_output=True, check=True).stdout)
    return [(a["local"], a["broadcast"]) for link in listed for a in link["addr_info"]
            if "broadcast" in a and a["local"].startswith(("10.", "172.", "192.168."))]


def fields(narinfo):
    """Key and value of each line. A line without a colon is more than the old program can bear."""
    pairs = []
    for line in narinfo.removesuffix("\n").split("\n"):
        key, value = line.split(":", 1)
        pairs.append((key.strip(), value.strip()))
    return pairs


class Handler(http.server.BaseHTTPRequestHandler):
    """The HTTP half."""

    protocol_version = "HTTP/1.1"
    store = lan = None

    def do_GET(self):
        path = urllib.parse.urlsplit(self.path).path
        if path == "/nix-cache-info":
            self._text(200, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 5\n")
        elif found := re.fullmatch(r"/local/(\w+)\.narinfo", path):
            narinfo = self.store.narinfo(found[1])
            self._text(200, narinfo) if narinfo else self._text(404, "Not found")
        elif found := re.fullmatch(r"/local/nar/(.+)\.nar", path):
            self._dump(urllib.parse.unquote(found[1]))
        elif found := re.fullmatch(r"/v2/remote/([^/]+)/(\d+)/\w+/(.+)", path):
            self._proxy(found[1], int(found[2]), "/" + found[3])
        elif found := re.fullmatch(r"/(\w+)\.narinfo", path):
            self._ask(found[1])
        else:
            self._text(404, "Not found")

    def _ask(self, store_hash):
        if self.client_address[0] != "127.0.0.1":
            return self._text(403, "Permission denied.")
        holder = self.lan.find(store_hash)
        if holder is None:
            return self._text(404, "Not found")
        address, port, path = holder
        peer = http.client.HTTPConnection(address, port, timeout=10)
        peer.request("GET", "/" + path)
        answer = peer.getresponse()
        body = answer.read().decode()
        if answer.status != 200:
            return self._text(404, "Not found")
        known = dict((k, v) for k, v in fields(body) if k != "Sig")
        known["URL"] = f"v2/remote/{address}/{port}/{store_hash}/{known['URL']}"
        known["Compression"] = "none"
        order = ("StorePath", "URL", "Compression", "NarHash", "NarSize", "References", "Deriver")
        lines = [f"{key}: {known[key]}" for key in order if key in known]
        lines += [f"Sig: {v}" for k, v in fields(body) if k == "Sig"]
        return self._text(200, "\n".join(lines) + "\n")

    def _proxy(self, address, port, path):
        peer = http.client.HTTPConnection(address, port, timeout=30)
        peer.request("GET", path)
        answer = peer.getresponse()
        if answer.status != 200:
            return self._text(404, "Not found")
        return self._stream(answer)

    def _dump(self, encoded):
        dump = self.store.dump(encoded)
        if dump is None:
            return self._text(404, "Not found")
        with dump:
            return self._stream(dump.stdout)

    def _stream(self, source):
        """Chunked, of unknown length, and named text."""
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while piece := source.read(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def _text(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        print(f"{self.client_address[0]} {form % values}", file=sys.stderr, flush=True)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--port", type=int, default=12304)
    options.add_argument("--timeout", type=int, default=50)
    options = options.parse_args()
    Handler.store = Store()
    Handler.lan = Lan(Handler.store, options.port, options.timeout / 1000)
    threading.Thread(target=Handler.lan.listen, daemon=True).start()
    server = socketserver.ThreadingTCPServer(("0.0.0.0", options.port), Handler, bind_and_activate=False)
    server.allow_reuse_address = server.daemon_threads = True
    server.request_queue_size = 128
    server.server_bind()
    server.server_activate()
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
