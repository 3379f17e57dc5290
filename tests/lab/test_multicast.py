"""Neighbours are found without IPv4, and as soon as the network has changed."""

from harness.case import LabCase, empty, full, http, wait_until

# How often a change is made: it has to be seen each time.
ROUNDS = 10


class Multicast(LabCase):
    """`holder` has the closure. On the link there are no addresses but the link-local ones of IPv6."""

    @classmethod
    def specs(cls):
        return [full("holder", connected=False), empty("asker", connected=False)]

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for host in cls.lab.hosts:
            cls.lab.plug(host, ipv4=False)

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        # What it has itself it also gives.
        self.forget(self.asker, self.closure.paths)
        for host in self.lab.hosts:
            self.await_address(host)

    def await_address(self, host):
        """Wait until the host has made sure that nobody else has its address."""
        wait_until(lambda: self.addresses(host) and not self.addresses(host, "tentative"), 10,
                   f"{host.name} may use its address", every=0.1)

    def addresses(self, host, kind=""):
        """The link-local addresses of the host, of the kind that `ip` shows with this word."""
        shown = host.shows(f"-6 address show dev lan0 scope link {kind}")
        return [address["local"] for entry in shown for address in entry["addr_info"]]

    def found(self, number):
        """Whether the asker's gateway finds a path of the closure, at the first try."""
        return self.status_of(self.asker, f"/{self.closure.chain[number].hash}.narinfo") == 200

    def test_a_sleeping_neighbour_is_woken_and_gives_a_closure(self):
        """205 paths, byte for byte, from a host that has no address but a link-local one."""
        self.assertEqual(self.asker.shows("-4 address show dev lan0"), [])
        self.assertFalse(self.holder.peerix.awake(), "it runs before anyone asked")
        starts = self.holder.peerix.starts()
        with self.lab.capture() as seen:
            self.pull(self.asker, self.closure.top)
        self.assert_valid(self.asker, self.closure.paths)
        self.assertEqual(self.holder.peerix.starts(), starts + 1)
        ours = [datagram for datagram in seen if 12304 in (datagram.source_port, datagram.target_port)]
        asked = [datagram for datagram in ours if datagram.multicast()]
        self.assertTrue(asked)
        self.assertEqual({datagram.host.name for datagram in asked}, {"asker"})
        self.note = f"{len(asked)} multicasts, {len(ours)} datagrams in all"

    def test_a_sleeping_neighbour_is_found_by_the_first_question(self):
        """Each time, as with broadcasts."""
        for number in range(ROUNDS):
            for host in self.lab.hosts:
                host.peerix.put_to_sleep()
            self.assertTrue(self.found(number), f"round {number}")

    def test_an_address_is_used_as_soon_as_it_may_be(self):
        """The link goes down and up. Before the new address is checked nobody is asked; then the next question reaches
        a neighbour that has fallen asleep."""
        self.assertTrue(self.found(0))
        before = self.asker.peerix.processes()
        self.addCleanup(self.asker.ip, "link set lan0 up")
        for number in range(1, 4):
            self.asker.ip("link set lan0 down")
            self.assertFalse(self.found(number))
            self.asker.ip("link set lan0 up")
            self.lab.await_forwarding(self.asker)
            self.found(number)
            self.await_address(self.asker)
            self.holder.peerix.put_to_sleep()
            self.assertTrue(self.found(number), f"round {number}")
        self.assertEqual(self.asker.peerix.processes(), before, "it was restarted")

    def test_without_broadcast_nothing_is_sent(self):
        """`discovery.broadcast = false` speaks of multicast too."""
        for setting, is_loud in (("false", False), ("true", True)):
            self.asker.peerix.reset(f"discovery.broadcast = {setting}\n")
            with self.lab.capture() as seen:
                for number in range(3):
                    self.assertEqual(self.found(number), is_loud)
            sent = [str(datagram) for datagram in seen if datagram.host is self.asker and datagram.source_port == 12304]
            self.assertEqual(bool(sent), is_loud, sent)


class Changes(LabCase):
    """What befalls the interface of `asker` while its daemon runs is seen by the next question, and no later one."""

    @classmethod
    def specs(cls):
        return [full("holder"), empty("asker")]

    def setUp(self):
        super().setUp()
        self.holder, self.asker = self.lab.hosts
        self.asker.peerix.reset('[idle]\ntimeout = "1h"\n')
        self.ask(0)
        self.before = self.asker.peerix.processes()

    def tearDown(self):
        self.assertEqual(self.asker.peerix.processes(), self.before, "it was restarted")
        super().tearDown()

    def ask(self, number):
        """One question for a path that was not asked for before; the seconds it took."""
        answer = http.get(self.asker, f"/{self.closure.chain[number].hash}.narinfo")
        self.assertEqual(answer.status, 200, f"question {number}")
        return answer.seconds

    def test_another_address(self):
        """The lease was renewed with another address; the neighbour sleeps in every second round."""
        def change(old, new):
            self.asker.ip(f"address delete {old}/24 dev lan0")
            self.asker.ip(f"address add {new}/24 brd + dev lan0")
        addresses = [self.asker.address, *(f"192.168.77.{100 + number}" for number in range(ROUNDS))]
        self.addCleanup(change, addresses[-1], addresses[0])
        slowest = 0.0
        for number in range(1, ROUNDS + 1):
            if number % 2:
                self.holder.peerix.put_to_sleep()
            change(addresses[number - 1], addresses[number])
            slowest = max(slowest, self.ask(number))
        self.note = f"{ROUNDS} changes, slowest {slowest * 1000:.0f} ms"

    def test_down_and_up(self):
        """While it is down a miss is quick; the neighbour sleeps in every second round."""
        for number in range(1, ROUNDS + 1):
            if number % 2:
                self.holder.peerix.put_to_sleep()
            self.asker.ip("link set lan0 down")
            miss = http.get(self.asker, f"/{number:032d}.narinfo")
            self.assertEqual(miss.status, 404)
            self.assertLess(miss.seconds, 0.3)
            self.asker.ip("link set lan0 up")
            self.lab.await_forwarding(self.asker)
            self.ask(number)

    def test_gone_and_back(self):
        """The adapter is pulled out and plugged in again: the same card, and for the kernel another interface."""
        card = self.asker.shows("link show lan0")[0]["address"]
        for number in range(1, ROUNDS + 1):
            self.holder.peerix.put_to_sleep()
            self.lab.unplug(self.asker)
            self.lab.plug(self.asker)
            self.asker.ip(f"link set lan0 address {card}")
            self.lab.await_forwarding(self.asker)
            self.ask(number)
