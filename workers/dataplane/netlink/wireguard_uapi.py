"""The constants of WireGuard's generic netlink family (include/uapi/linux/wireguard.h)."""

from __future__ import annotations

import struct

FAMILY = "wireguard"

#: Commands; attributes of the device; of a peer, with the prefix P; flags of a peer.
GET_DEVICE, SET_DEVICE = 0, 1
IFINDEX, IFNAME, PRIVATE_KEY, PUBLIC_KEY, LISTEN_PORT, PEERS = 1, 2, 3, 4, 6, 8
P_PUBLIC_KEY, P_PRESHARED_KEY, P_FLAGS, P_ENDPOINT, P_KEEPALIVE = 1, 2, 3, 4, 5
P_HANDSHAKE, P_RX, P_TX, P_ALLOWED_IPS = 6, 7, 8, 9
REMOVE_ME, REPLACE_ALLOWED_IPS, UPDATE_ONLY = 1, 2, 4

#: No preshared key.
NO_KEY = bytes(32)
#: Integers in host order.
U16 = struct.Struct("=H")
U32 = struct.Struct("=I")
