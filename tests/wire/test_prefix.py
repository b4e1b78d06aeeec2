"""Prefixes, held against the standard library's ``ipaddress``."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerlane.tasks.values.prefix import Prefix

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(version: int, number: int, length: int) -> Network:
    address = ipaddress.IPv4Address(number) if version == 4 else ipaddress.IPv6Address(number)
    return ipaddress.ip_network(f"{address}/{length}", strict=False)


def networks(version: int) -> st.SearchStrategy[Network]:
    bits = 32 if version == 4 else 128
    return st.builds(_network, st.just(version), st.integers(0, 2**bits - 1), st.integers(0, bits))


any_network = networks(4) | networks(6)
#: Few enough that two of them often overlap.
crowded = st.builds(_network, st.just(4), st.sampled_from([number << 24 for number in range(8)]), st.integers(4, 12))


def of(network: Network) -> Prefix:
    return Prefix(network.version, int(network.network_address), network.prefixlen)


class TestAPrefixMeansWhatIpaddressMeans:
    @given(any_network)
    def test_when_parsed_and_printed(self, network: Network) -> None:
        prefix = Prefix.parse(str(network))
        assert prefix == of(network)
        assert ipaddress.ip_network(str(prefix)) == network
        assert Prefix.parse(str(prefix)) == prefix

    @given(any_network)
    def test_in_each_of_its_parts(self, network: Network) -> None:
        prefix = of(network)
        assert prefix.last == int(network.broadcast_address)
        assert prefix.packed == network.network_address.packed
        assert prefix.bits == network.max_prefixlen
        assert ipaddress.ip_address(prefix.address) == network.network_address
        assert Prefix.from_packed(prefix.packed, prefix.length) == prefix

    @given(crowded, crowded)
    def test_when_asked_for_overlap(self, first: Network, second: Network) -> None:
        assert of(first).overlaps(of(second)) == first.overlaps(second)
        assert of(first).contains(of(second)) == (second.subnet_of(first))  # pyright: ignore[reportArgumentType] - both IPv4

    @given(networks(4), networks(6))
    def test_the_families_never_overlap(self, four: Network, six: Network) -> None:
        assert not of(four).overlaps(of(six))
        assert not of(six).contains(of(four))

    @given(st.lists(networks(4)))
    def test_sorted_by_address_then_length(self, networks: list[Network]) -> None:
        expected = sorted(networks, key=lambda n: (int(n.network_address), n.prefixlen))
        assert [str(p) for p in sorted(of(n) for n in networks)] == [str(n) for n in expected]

    @given(any_network, st.data())
    def test_as_an_interface_with_host_bits(self, network: Network, data: st.DataObject) -> None:
        number = data.draw(st.integers(int(network.network_address), int(network.broadcast_address)))
        address = type(network.network_address)(number)
        assert Prefix.parse_interface(f"{address}/{network.prefixlen}") == (number, of(network))


class TestABareAddressIsASingleHost:
    @given(st.ip_addresses())
    def test_of_either_family(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        assert Prefix.parse(str(address)) == Prefix.host(address.version, int(address))


class TestWhatIsNoPrefixIsRefused:
    @given(any_network, st.data())
    def test_with_the_right_one_where_host_bits_are_set(self, network: Network, data: st.DataObject) -> None:
        number = data.draw(st.integers(int(network.network_address), int(network.broadcast_address)))
        text = f"{type(network.network_address)(number)}/{network.prefixlen}"
        if number == int(network.network_address):
            assert Prefix.parse(text) == of(network)
        else:
            with pytest.raises(ValueError, match="host bits") as caught:
                Prefix.parse(text)
            assert str(of(network)) in str(caught.value)

    @given(st.text(max_size=24))
    def test_with_a_value_error_and_nothing_else(self, text: str) -> None:
        try:
            prefix = Prefix.parse(text)
        except ValueError:
            return
        assert ipaddress.ip_network(text) == ipaddress.ip_network(str(prefix))

    @pytest.mark.parametrize(
        "text",
        [
            *("", "/", "/32", "10.8.0.1/", "10.8.0.1/33", "10.8.0.1/-1", "10.8.0.1/+8", "10.8.0.1/032", "10.8.0.1/٣"),
            *("10.8.0/24", "10.8.0.1.2", "010.8.0.1", "0x0a.8.0.1", "10.8.0.1/255.255.255.255", " 10.8.0.1"),
            *("fd00::/129", "fd00:::1", "fd00::1%eth0", "fd00::1%25", "[fd00::1]", "::ffff:10.8.0.1/129", "10.8.0.1\0"),
        ],
    )
    def test_however_near_it_comes(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"prefix|number"):
            Prefix.parse(text)
