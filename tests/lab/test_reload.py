"""`systemctl reload`: new settings without a restart; wrong ones are refused and the old ones kept."""

from harness.case import LabCase, empty, full, http, wait_until


class Reload(LabCase):
    """`host` shares, `asker` sees whether it does."""

    @classmethod
    def specs(cls):
        return [full("host"), empty("asker", peerix=False)]

    def setUp(self):
        super().setUp()
        self.host, self.asker = self.lab.hosts
        self.path = self.closure.chain[0]
        self.assert_holds(self.host, self.path)
        self.before = self.host.peerix.processes()

    def shares(self):
        """Whether the asker gets the path's narinfo."""
        return self.status_of(self.asker, f"/local/{self.path.hash}.narinfo", address=self.host.address) == 200

    def reload(self):
        """systemctl reload, and the process is still the same."""
        self.host.run("systemctl reload peerix.service", check=False)
        self.assertEqual(self.host.peerix.processes(), self.before, "it was restarted")
        self.assertEqual(self.host.peerix.show("ActiveState"), "active")

    def test_new_settings_hold_after_a_reload(self):
        """And the old ones again after the next."""
        self.host.peerix.configure('[share]\npaths = "none"\n')
        self.assertTrue(self.shares(), "settings changed without a reload")
        self.reload()
        wait_until(lambda: not self.shares(), 2, "nothing is shared")
        self.host.peerix.configure(None)
        self.reload()
        wait_until(self.shares, 2, "all is shared again")

    def test_wrong_settings_are_refused_with_a_reason(self):
        """The old ones hold, the journal says what is wrong."""
        mark = self.host.peerix.cursor()
        self.host.peerix.configure('[share]\npaths = "some"\n')
        self.reload()
        self.assertTrue(self.shares())
        wait_until(lambda: "paths" in self.host.peerix.said(since=mark, priority="warning"), 2, "a reason in the journal")

    def test_a_change_of_shared_keys_holds_after_a_reload(self):
        """A path is shared by its key; once another key is named instead, it no longer is."""
        other = "other-1:" + self.closure.public_key.split(":")[1]
        self.host.peerix.configure(f'share.keys = ["{other}"]\n')
        self.reload()
        wait_until(lambda: not self.shares(), 2, "nothing is shared")
        self.host.peerix.configure(f'share.keys = ["{self.closure.public_key}"]\n')
        self.reload()
        wait_until(self.shares, 2, "it is shared again")

    def test_a_reload_disturbs_no_stream(self):
        """A NAR that is being sent when the settings change comes to its end."""
        blob = self.closure.blobs[0]
        with self.asker.tcp(self.host.address, 12304) as stream:
            stream.sendall(f"GET /nar/{blob.nar} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            size = len(stream.recv(65536))
            self.host.peerix.configure('priority = 30\n')
            self.reload()
            while piece := stream.recv(1 << 20):
                size += len(piece)
        self.assertGreater(size, blob.nar_size)
        info = http.get(self.asker, "/nix-cache-info", self.host.address)
        self.assertEqual(info.field("Priority"), "30")
