"""Files of ``wg`` and wg-quick: what they say is read, what is wrong is told with its line, no secret is repeated."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from confs import peer_lists, rendered
from hypothesis import given
from hypothesis import strategies as st
from keys import key_number, some_key

from peerlane.tasks.admission.lane_state import LaneState
from peerlane.tasks.status.gateway_info import GatewayInfo
from peerlane.tasks.values.keys import make_key_pair
from peerlane.tasks.wgfile.export import render_in_order
from peerlane.tasks.wgfile.parser import MAX_LINE, MAX_PROBLEMS, ParsedConf, parse_conf
from peerlane.tasks.wire.stored_peer import Peer

ALICE, BOB = key_number(1), key_number(2)
SECRET = make_key_pair()
PRESHARED = some_key()

A_FILE = f"""\
[Interface]
PrivateKey = {SECRET.private_key}
Address = 10.8.0.1/16, fd00:8::1/64
ListenPort = 51820
DNS = 10.8.0.1
PostUp = iptables -A FORWARD -i %i -j ACCEPT  # not for us

[Peer]
# friendly_name = Alice's phone
# label.team = ci
PublicKey = {ALICE}
PresharedKey = {PRESHARED}
AllowedIPs = 10.8.0.2, fd00:8::2/128
AllowedIPs = 192.168.7.0/24
Endpoint = 203.0.113.7:40000
PersistentKeepalive = 25

[Peer]
PublicKey = {BOB}
AllowedIPs = 10.8.0.3/32
PersistentKeepalive = off
"""


def read(text: str) -> ParsedConf:
    return parse_conf(text.encode())


def the_problem(text: str) -> tuple[int, str]:
    problems = read(text).problems
    assert len(problems) == 1, problems
    return problems[0].line, problems[0].sentence


def a_peer(*lines: str, key: str = ALICE) -> str:
    return "\n".join(["[Peer]", f"PublicKey = {key}", *(lines or ["AllowedIPs = 10.8.0.2/32"]), ""])


_GATEWAY = GatewayInfo.from_state(LaneState("iad", {"public_key": BOB, "listen_port": "51820"}, 0, 0, 0))


class TestAGoodFile:
    def test_says_all_of_a_peer(self) -> None:
        conf = read(A_FILE)
        assert not conf.problems
        alice, bob = conf.peers
        assert (alice.line, bob.line) == (8, 18)
        assert alice.peer.public_key == ALICE
        assert alice.peer.preshared_key == PRESHARED
        assert [str(prefix) for prefix in alice.peer.allowed_ips] == ["10.8.0.2/32", "192.168.7.0/24", "fd00:8::2/128"]
        assert alice.peer.keepalive == 25
        assert alice.peer.labels == {"name": "Alice's phone", "team": "ci"}
        assert alice.endpoint == "203.0.113.7:40000"
        assert (bob.peer.keepalive, bob.peer.preshared_key, bob.peer.labels) == (0, None, {})

    def test_says_which_gateway_it_is_of_without_its_private_key(self) -> None:
        conf = read(A_FILE)
        assert conf.public_key == SECRET.public_key
        assert (conf.listen_port, conf.addresses) == (51820, ("10.8.0.1/16", "fd00:8::1/64"))
        assert SECRET.private_key not in repr(conf)
        assert PRESHARED not in repr(conf)

    def test_has_no_line_that_a_gateway_has_told(self) -> None:
        """wg-quick runs PostUp lines as root."""
        lane = LaneState("iad", {"public_key": "x\nPostUp = touch /tmp/owned"}, None, 0, 0)
        lines = list(render_in_order(GatewayInfo.from_state(lane), []))
        assert lines[0] == "# The peers of the gateway iad."
        assert not any("PostUp" in line for line in lines)

    def test_may_come_from_windows(self) -> None:
        assert parse_conf(b"\xef\xbb\xbf" + A_FILE.replace("\n", "\r\n").encode()) == read(A_FILE)

    def test_may_have_its_keys_in_any_case_and_its_blanks_anywhere(self) -> None:
        shouted = "\n".join(
            f"  {line.partition('=')[0].upper()}={line.partition('=')[2]}\t"
            if "=" in line and "#" not in line
            else line
            for line in A_FILE.splitlines()
        )
        assert read(shouted) == read(A_FILE)

    def test_may_have_comments_anywhere(self) -> None:
        (entry,) = read(
            f"# head\n[Peer] # one\nPublicKey = {ALICE} # his key\nAllowedIPs = 10.8.0.2 #, 10.8.0.3\n"
        ).peers
        assert [str(prefix) for prefix in entry.peer.allowed_ips] == ["10.8.0.2/32"]

    def test_may_be_empty(self) -> None:
        assert read("") == ParsedConf(None, None, (), (), ())

    def test_may_end_in_the_middle_of_nothing(self) -> None:
        assert [entry.peer.public_key for entry in read(A_FILE.rstrip("\n")).peers] == [ALICE, BOB]


class TestAName:
    @pytest.mark.parametrize(
        "comment",
        [
            "# friendly_name = bob",
            "#friendly_name=bob",
            "# Name = bob",
            "### Client bob",
            "# BEGIN_PEER bob",
            "# Client: bob (5b7f9ab1-6f0c-4d8e-9a51-0d2c3b4a5e6f)",
            "### begin bob ###",
            "# Name:   bob",
            '# friendly_json = {"username": "bob"}',
        ],
    )
    def test_is_found_in_the_section_and_before_it(self, comment: str) -> None:
        peer = a_peer()
        inside = peer.replace("[Peer]\n", f"[Peer]\n{comment}\n")
        for text in (f"{comment}\n{peer}", f"{comment}\n\n{peer}", inside, peer + comment, f"{peer}{comment}\n\n"):
            (entry,) = read(text).peers
            assert entry.peer.labels == {"name": "bob"}, text

    @pytest.mark.parametrize("gap", ["", "\n"])
    def test_is_that_of_the_section_it_stands_before(self, gap: str) -> None:
        text = f"### Client a\n{a_peer()}{gap}### Client b\n{a_peer('AllowedIPs = 10.8.0.3', key=BOB)}"
        assert [entry.peer.labels for entry in read(text).peers] == [{"name": "a"}, {"name": "b"}]

    def test_is_not_every_comment(self) -> None:
        text = "# Client list of Tuesday\n# see https://example.com/?a=b\n# friendly_json = {}\n#\n" + a_peer()
        (entry,) = read(text).peers
        assert not entry.peer.labels
        assert read(text).unread == (1, 2), "what is for people alone is told, not dropped in silence"

    @pytest.mark.parametrize("where", ["above", "behind the head", "below the head"])
    def test_may_stand_by_itself_beside_the_sections_head(self, where: str) -> None:
        peer = a_peer()
        text = {
            "above": f"# anna\n{peer}",
            "behind the head": peer.replace("[Peer]", "[Peer]  # anna"),
            "below the head": peer.replace("[Peer]\n", "[Peer]\n#anna\n"),
        }[where]
        conf = read(text)
        assert [entry.peer.labels for entry in conf.peers] == [{"name": "anna"}]
        assert not conf.unread

    @pytest.mark.parametrize(
        "text",
        [
            f"# anna\n\n{a_peer()}",
            f"# her old phone\n{a_peer()}",
            a_peer("AllowedIPs = 10.8.0.2/32", "# disabled"),
            a_peer("AllowedIPs = 10.8.0.2/32  # anna"),
            f"# friendly_json = {{broken\n{a_peer()}",
            f'# friendly_json = {{"Given Name": "anna"}}\n{a_peer()}',
            f"# {PRESHARED}\n{a_peer()}",
            f"{a_peer()}\n\n# anna",
        ],
        ids=["far", "sentence", "at the end", "behind a key", "no JSON", "no label", "a key", "after a gap"],
    )
    def test_that_is_not_understood_is_told_by_its_line(self, text: str) -> None:
        conf = read(text)
        assert [entry.peer.labels for entry in conf.peers] == [{}]
        (line,) = conf.unread
        assert text.splitlines()[line - 1].count("#") == 1

    @pytest.mark.parametrize(
        ("comment", "name"),
        [
            ("### begin anna ###", "anna"),
            ("## begin anna lee##", "anna lee"),
            ("## begin #####", None),
            ("# Client: anna (0b2f3c4d-0000-4000-8000-0123456789ab)", "anna"),
            ("# Name: anna(0B2F3C4D-0000-4000-8000-0123456789AB)", "anna"),
            ("# Name:   anna (home)", "anna (home)"),
        ],
    )
    def test_is_bare_of_what_programs_write_around_it(self, comment: str, name: str | None) -> None:
        conf = read(f"{comment}\n{a_peer()}")
        assert [entry.peer.labels for entry in conf.peers] == [{} if name is None else {"name": name}]
        assert not conf.unread

    def test_comes_first_and_another_one_is_told(self) -> None:
        anna, bob = a_peer(), a_peer("AllowedIPs = 10.8.0.3", key=BOB)
        conf = read(f"### begin anna ###\n{anna}### end anna ###\n### begin bob ###\n# phone\n{bob}")
        assert [entry.peer.labels for entry in conf.peers] == [{"name": "anna"}, {"name": "bob"}]
        assert conf.unread == (7,)

    def test_comes_with_the_labels_of_its_json(self) -> None:
        text = f'# friendly_json = {{"name": "anna", "username": "a1", "id": 7, "vip": true}}\n{a_peer()}'
        (entry,) = read(text).peers
        assert entry.peer.labels == {"name": "anna", "username": "a1", "id": "7", "vip": "true"}

    def test_of_a_web_interface_is_found_among_what_else_it_writes(self) -> None:
        lines = ("# ID:           c8k2", "# Name:         anna", "# Email:", "# Created at: 2026-01-02", "# Update at:")
        conf = read("\n".join(lines) + "\n" + a_peer())
        assert [entry.peer.labels for entry in conf.peers] == [{"name": "anna"}]
        assert conf.unread == (1, 3, 4, 5)

    @pytest.mark.parametrize(
        "comment", ["# label.BAD KEY = x", "# friendly_name = " + "x" * 257, "# label.a = bell\x07", "# label. = x"]
    )
    def test_that_cannot_be_a_label_is_a_problem(self, comment: str) -> None:
        assert "label" in the_problem(f"{comment}\n{a_peer()}")[1]

    @pytest.mark.parametrize(
        "comment",
        ["# peerlane.expires_at = tomorrow", "# peerlane.pinned = perhaps", "# peerlane.ttl = -1", "# peerlane.x = 1"],
    )
    def test_of_ours_that_is_malformed_is_a_problem(self, comment: str) -> None:
        line, sentence = the_problem(f"{comment}\n{a_peer()}")
        assert line in (1, 2)
        assert "peerlane." in sentence


class TestAProblem:
    @pytest.mark.parametrize(
        ("text", "line", "says"),
        [
            ("[Interface]\n[Interface]\n", 2, "second [Interface]; the first is at line 1"),
            ("[Server]\nPublicKey = x\n", 1, "no such section"),
            ("[Peer\n", 1, "no such section"),
            ("PublicKey = x\n", 1, "before any section"),
            ("[Interface]\nJc = 4\n", 2, "no such key in [Interface]"),
            ("[Interface]\nListenPrt = 4\n", 2, "did you mean ListenPort?"),
            ("[Interface]\nhello\n", 2, "neither a section nor KEY = VALUE"),
            ("[Interface]\nListenPort = 65536\n", 2, "a number from 0 to 65535"),
            ("[Interface]\nListenPort = 1\nListenPort = 2\n", 3, "a second time"),
            ("[Interface]\nAddress = here\n", 2, "an Address is not an IPv4 or IPv6 prefix"),
            ("[Interface]\nPrivateKey = x\n", 2, "PrivateKey is no key"),
            ("[Peer]\nAllowedIPs = 10.8.0.2\n", 1, "no PublicKey"),
            ("[Peer]\n", 1, "no PublicKey"),
            (a_peer("PersistentKeepalive = 1"), 1, "no AllowedIPs"),
            (a_peer("AllowedIPs ="), 1, "no AllowedIPs"),
            (a_peer("AllowedIPs = 10.8.0.2/16"), 3, "10.8.0.2/16 has host bits set; did you mean 10.8.0.0/16?"),
            (a_peer("AllowedIPs = 10.8.0.2,"), 3, "an entry is not an IPv4 or IPv6 prefix"),
            (a_peer("AllowedIPs = 10.8.0.2/255.255.255.255"), 3, "prefix length"),
            (a_peer("AllowedIPs = 10.8.0.0/24, 10.8.0.9"), 3, "10.8.0.0/24 and 10.8.0.9/32 overlap"),
            (a_peer("AllowedIPs = 10.8.0.9", "AllowedIPs = fd00::/64, 10.8.0.0/24"), 4, "overlap"),
            (a_peer("AllowedIPs = 10.8.0.2", "PersistentKeepalive = soon"), 4, "off or a number"),
            (a_peer("AllowedIPs = 10.8.0.2", "PresharedKey = x"), 4, "PresharedKey is no key"),
            (a_peer("AllowedIPs = 10.8.0.2", "Endpoint = nowhere"), 4, "host:port"),
            (a_peer("AllowedIPs = 10.8.0.2", f"PublicKey = {BOB}"), 4, "PublicKey stands a second time"),
            (a_peer("AllowedIPs = 10.8.0.2", "PostUp = reboot"), 4, "no such key in [Peer]"),
            (a_peer(key="A" * 43 + "="), 2, "nobody's key"),
            (a_peer(key=ALICE[:-1]), 2, "PublicKey is not a public key"),
            (a_peer() + a_peer("AllowedIPs = 10.8.0.3"), 4, f"the peer {ALICE} stands at line 1 already"),
            (a_peer() + a_peer(key=BOB), 4, "10.8.0.2/32 overlaps 10.8.0.2/32 of the peer at line 1"),
            (a_peer() + a_peer("AllowedIPs = 10.8.0.0/24", key=BOB), 4, "10.8.0.0/24 overlaps 10.8.0.2/32 of the peer"),
            ("[Interface]\nPublic\0Key = x\n", 2, "NUL"),
        ],
    )
    def test_is_told_with_its_line(self, text: str, line: int, says: str) -> None:
        found_line, sentence = the_problem(text)
        assert says in sentence
        assert found_line == line

    def test_is_a_line_that_is_not_utf8(self) -> None:
        (problem,) = parse_conf(b"[Interface]\n# caf\xe9\n").problems
        assert (problem.line, "UTF-8" in problem.sentence) == (2, True)

    def test_is_every_line_of_a_file_in_utf16(self) -> None:
        assert parse_conf(A_FILE.encode("utf-16")).problems

    def test_is_a_line_of_ten_megabytes(self) -> None:
        (problem,) = parse_conf(b"[Interface]\nPostUp = " + b"x" * 10_000_000 + b"\n").problems
        assert (problem.line, str(MAX_LINE) in problem.sentence) == (2, True)

    def test_of_a_hostile_file_takes_no_longer_than_its_length(self) -> None:
        """Before, each of these took hours."""
        blanks, hashes = " " * 60_000, "#" * 60_000
        comments = [f"# name: a{blanks}b", f"## begin {hashes}x", f"# label.{blanks}b"] * 100
        a_peer = f"[Peer]\nPublicKey = {ALICE}\nAllowedIPs = 0.0.0.0/0\n"
        for text in ("\n".join(comments), a_peer + "AllowedIPs = 10.0.0.1\n" * 300_000, a_peer * 20_000):
            assert len(read(text).problems) <= 101

    def test_is_one_of_so_many_at_most(self) -> None:
        problems = parse_conf(b"nonsense\n" * 1_000_000).problems
        assert len(problems) == MAX_PROBLEMS + 1
        assert "not listed" in problems[-1].sentence

    def test_never_quotes_what_may_be_secret(self) -> None:
        for where in (
            "PrivateKey",
            "PresharedKey",
            "PublicKey",
            "AllowedIPs",
            "Endpoint",
            "ListenPort",
            "Address",
            "X",
        ):
            for value in (SECRET.private_key, SECRET.private_key[:-3], SECRET.private_key[20:]):
                for section in ("Interface", "Peer"):
                    for line in (f"{where} = {value}", f"{where} {value}", value, f"{value} = {where}"):
                        conf = read(f"[{section}]\n{line}\n")
                        text = " ".join(problem.sentence for problem in conf.problems)
                        assert value.rstrip("=") not in text
                        assert SECRET.private_key[20:34] not in text

    def test_leaves_the_peer_out(self) -> None:
        conf = read(a_peer("AllowedIPs = nowhere") + a_peer(key=BOB))
        assert conf.problems
        assert [entry.peer.public_key for entry in conf.peers] == [BOB]


class TestWhateverComes:
    @given(st.binary(max_size=4000))
    def test_random_bytes_are_read_without_an_error(self, data: bytes) -> None:
        parse_conf(data)

    @given(
        st.lists(st.sampled_from([*A_FILE.splitlines(), "[Peer]", "[Interface]", "", "#", "=", "\0", "[", "\ud7ff"]))
    )
    def test_lines_in_any_order_are_read_without_an_error(self, lines: list[str]) -> None:
        read("\n".join(lines))

    @given(st.randoms(use_true_random=False))
    def test_a_damaged_file_is_read_without_an_error_and_its_secrets_kept(self, chance: random.Random) -> None:
        data = bytearray(A_FILE.encode())
        for _ in range(chance.randint(1, 12)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 40)]
                case 2:
                    data[at:at] = data[chance.randrange(len(data)) :][:60]
                case _:
                    data[at:at] = b"\n"
        text = " ".join(problem.sentence for problem in parse_conf(bytes(data)).problems)
        for secret in (SECRET.private_key, PRESHARED):
            assert all(secret[start : start + 12] not in text for start in range(32))

    @given(st.integers(0, len(A_FILE)))
    def test_a_file_cut_short_is_read_without_an_error(self, end: int) -> None:
        conf = read(A_FILE[:end])
        assert [entry.peer.public_key for entry in conf.peers] in ([], [ALICE], [ALICE, BOB], [BOB])

    @given(peer_lists())
    def test_what_was_written_is_read_back_the_same(self, peers: list[Peer]) -> None:
        conf = parse_conf(rendered(peers))
        assert not conf.problems
        assert [entry.peer for entry in conf.peers] == peers

    @given(peer_lists())
    def test_an_export_is_read_back_the_same(self, peers: list[Peer]) -> None:
        conf = parse_conf("\n".join(render_in_order(_GATEWAY, peers)).encode())
        assert not conf.problems
        assert {entry.peer.public_key: entry.peer for entry in conf.peers} == {peer.public_key: peer for peer in peers}
        assert conf.listen_port == 51820


@pytest.mark.kernel
def test_an_export_is_what_wg_takes_and_shows_again(tmp_path: Path) -> None:
    alice, bob = (entry.peer for entry in read(A_FILE).peers)
    file = tmp_path / "export.conf"
    file.write_text("\n".join(render_in_order(_GATEWAY, [alice, bob])) + "\n")
    subprocess.run(["ip", "link", "add", "wgexp", "type", "wireguard"], check=True)
    try:
        subprocess.run(["wg", "syncconf", "wgexp", file], check=True)
        shown = subprocess.run(["wg", "showconf", "wgexp"], check=True, capture_output=True).stdout
    finally:
        subprocess.run(["ip", "link", "del", "wgexp"], check=True)
    conf = parse_conf(shown)
    assert not conf.problems
    shown_peers = sorted((entry.peer for entry in conf.peers), key=lambda peer: peer.public_key)
    assert shown_peers == [peer.model_copy(update={"labels": {}}) for peer in (alice, bob)]
