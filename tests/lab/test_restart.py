"""Promises 1 and 3 when the daemon itself hangs, dies or is restarted: builds go on."""

import os
import signal
from pathlib import Path

from harness.case import LabCase, empty, full, http, wait_until
from harness.prober import Prober

MIB = 1 << 20


class Restart(LabCase):
    """`holder` has the closure, `asker` an empty store and its gateway."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.forget(self.asker, self.closure.paths)
        self.addCleanup(self.lab.slow_down, self.holder, None)

    def signal(self, host, number):
        """Send a signal to the daemon's process."""
        processes = host.peerix.processes()
        self.assertTrue(processes, f"{host.name}: no daemon to send a signal to")
        for process in processes:
            os.kill(process, number)

    def hang(self, host):
        """SIGSTOP, and wait until each thread has stopped: until then one may still take a request."""
        self.signal(host, signal.SIGSTOP)
        for process in host.peerix.processes():
            wait_until(lambda: all(state_of(task) == "T" for task in Path(f"/proc/{process}/task").iterdir()), 2,
                       "all threads are stopped", every=0.001)

    def start_pull(self, path, rate):
        """Pull in the background over a slow link; returns when the first bytes are on their way."""
        self.lab.slow_down(self.holder, rate)
        pull = self.asker.spawn(f"exec nix-store -r {path.path} > /root/pull.log 2>&1")
        self.addCleanup(pull.wait)
        self.addCleanup(pull.kill)
        return pull

    def await_sent(self, count, pull):
        """Wait until the holder has sent so many bytes more; the pull must still be going on then."""
        goal = self.lab.bytes_from(self.holder) + count
        wait_until(lambda: self.lab.bytes_from(self.holder) >= goal or pull.poll() is not None, 60,
                   f"{count} bytes from the holder")
        self.assertIsNone(pull.poll(), "the pull was over before it could be disturbed")

    def finish(self, pull, *paths):
        """The pull ends well and all is valid."""
        self.assertEqual(pull.wait(120), 0, self.asker.path("/root/pull.log").read_text()[-3000:])
        self.assert_valid(self.asker, paths)

    def test_a_hung_daemon_is_ended_by_the_watchdog_and_the_waiting_request_answered(self):
        """SIGSTOP, then a request: it is answered within 12 s by the next process."""
        path = self.closure.chain[0]
        for host, question in ((self.asker, lambda: http.get(self.asker, f"/{path.hash}.narinfo", bound=14)),
                               (self.holder, lambda: http.get(self.asker, f"/local/{path.hash}.narinfo",
                                                              self.holder.address, bound=14))):
            self.assertEqual(question().status, 200)
            hung = host.peerix.processes()
            self.hang(host)
            answer = question()
            self.assertEqual(answer.status, 200)
            self.assertLess(answer.seconds, 12)
            self.assertNotEqual(host.peerix.processes(), hung, "it answered although it was stopped")
        self.assert_no_lost_socket()

    def test_a_daemon_killed_in_mid_serving_costs_a_moment(self):
        """SIGKILL of the only holder's daemon: a waiting request is answered, the pull goes on to its end."""
        path = self.closure.blobs[0]
        pull = self.start_pull(path, "200mbit")
        self.await_sent(8 * MIB, pull)
        self.signal(self.holder, signal.SIGKILL)
        answer = http.get(self.asker, f"/local/{path.hash}.narinfo", self.holder.address, bound=5)
        self.assertEqual(answer.status, 200)
        self.assertLess(answer.seconds, 2)
        self.finish(pull, path)

    def test_a_gateway_killed_in_mid_serving_costs_a_moment(self):
        """SIGKILL of the asker's own daemon: Nix resumes at the byte it had."""
        path = self.closure.blobs[1]
        pull = self.start_pull(path, "200mbit")
        self.await_sent(8 * MIB, pull)
        self.signal(self.asker, signal.SIGKILL)
        answer = http.get(self.asker, f"/{path.hash}.narinfo", bound=5)
        self.assertEqual(answer.status, 200)
        self.assertLess(answer.seconds, 2)
        self.finish(pull, path)

    def narinfo_problem(self):
        """What is wrong with the gateway's answer for a narinfo, on a connection of its own."""
        status = http.get(self.asker, f"/{self.closure.chain[0].hash}.narinfo", bound=5).status
        return None if status in (200, 404) else f"status {status}"

    def test_a_restart_in_mid_pull_fails_no_build_and_delays_no_narinfo(self):
        """`systemctl restart` at both ends while the closure is pulled: no narinfo waits over 1.5 s."""
        pull = self.start_pull(self.closure.top, "400mbit")
        with Prober(self.narinfo_problem) as prober:
            for host in (self.asker, self.holder, self.asker):
                self.await_sent(16 * MIB, pull)
                host.run("systemctl restart peerix.service")
            self.finish(pull, *self.closure.paths)
        self.assertFalse(prober.problems, prober.problems[:3])
        self.assertLess(prober.slowest, 1.5)
        self.note = f"{prober.asked} narinfo asked meanwhile, slowest {prober.slowest * 1000:.0f} ms"

    def test_keep_alive_connections_survive_or_end_cleanly_over_a_restart(self):
        """A connection that Nix would reuse is closed by FIN, not left to hang."""
        with self.asker.tcp("127.0.0.1", 12304) as kept:
            request = b"GET /nix-cache-info HTTP/1.1\r\nHost: 127.0.0.1:12304\r\n\r\n"
            kept.sendall(request)
            answer = b""
            while b"Priority: 20" not in answer:
                answer += kept.recv(4096)
            self.assertTrue(answer.startswith(b"HTTP/1.1 200"))
            self.asker.run("systemctl restart peerix.service")
            kept.settimeout(3)
            self.assertEqual(kept.recv(4096).strip(), b"", "the old connection was not closed")


def state_of(task):
    """The letter of a thread's state, from its directory in /proc."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]
