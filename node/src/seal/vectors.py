#!/usr/bin/env python3
"""The envelope and the tokens once more, written from the text in mod.rs alone and sharing no code with it.

    vectors.py            checks vectors.json
    vectors.py --write    computes vectors.json anew

Needs `pip install cryptography zstandard`.
"""

import hashlib
import hmac
import json
import pathlib
import struct
import sys

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = pathlib.Path(__file__).with_name("vectors.json")
KINDS = {"body": 1, "header": 2, "audit_event": 3, "wrapped_key": 4,
         "name": 5, "grant": 6, "page_token": 7, "root_check": 8}


def mac(key, data):
    return hmac.new(key, data, hashlib.sha256).digest()


def hkdf(key, salt, info, length):
    prk, block, out = mac(salt or bytes(32), key), b"", b""
    while len(out) < length:
        block = mac(prk, block + info + bytes([len(out) // 32 + 1]))
        out += block
    return out[:length]


def padme(length):
    exponent = length.bit_length() - 1
    zero_bits = exponent - exponent.bit_length()
    return (length + (1 << zero_bits) - 1) >> zero_bits << zero_bits


def aad(header, a):
    return (b"charthold/aad/v1" + header + bytes([KINDS[a["kind"]], a["op"]])
            + b"".join(bytes.fromhex(a[name]) for name in ("tenant", "chart", "record_type", "record", "write_id"))
            + struct.pack(">IB", a["part"], a["last"]))


def seal(key, key_id, salt, address, clear, compression):
    header = bytes([1, 1]) + key_id + salt
    data = clear if compression == "none" else zstandard.ZstdCompressor(level=1).compress(clear)
    plain = struct.pack(">BI", 0 if compression == "none" else 1, len(data)) + data
    plain += bytes(padme(len(plain)) - len(plain))
    bound = aad(header, address)
    assert len(bound) == 139
    okm = hkdf(key, salt, b"charthold/envelope/v1" + hashlib.sha256(bound).digest(), 76)
    return header + okm[32:64] + AESGCM(okm[:32]).encrypt(okm[64:], plain, bound)


def open_(key, address, envelope):
    header, commitment, bound = envelope[:34], envelope[34:66], aad(envelope[:34], address)
    okm = hkdf(key, header[10:], b"charthold/envelope/v1" + hashlib.sha256(bound).digest(), 76)
    assert header[:2] == b"\x01\x01" and hmac.compare_digest(commitment, okm[32:64])
    plain = AESGCM(okm[:32]).decrypt(okm[64:], envelope[66:], bound)
    compression, length = struct.unpack(">BI", plain[:5])
    assert len(plain) == padme(5 + length) and not any(plain[5 + length:])
    data = plain[5:5 + length]
    return zstandard.ZstdDecompressor().decompress(data) if compression else data


def key_id(key):
    return hkdf(key, b"", b"charthold/key-id/v1", 8)


def token(secret, label, data):
    return mac(hkdf(secret, b"", b"charthold/token/v1/" + label.encode(), 32), data)[:16]


def fill(label, length):
    """Bytes that look random and are the same every time."""
    return b"".join(hashlib.sha256(f"{label}/{i}".encode()).digest() for i in range(length // 32 + 1))[:length]


def address(kind, **fields):
    a = {"kind": kind, "op": 0, "part": 0, "last": False, "write_id": "00" * 18}
    a |= {name: "00" * 16 for name in ("tenant", "chart", "record_type", "record")}
    return a | {k: v.hex() if isinstance(v, bytes) else v for k, v in fields.items()}


def envelopes():
    ids = {name: fill(name, 16) for name in ("tenant", "chart", "record_type", "record")}
    place = {name: ids[name] for name in ("tenant", "chart")}
    write = {"write_id": fill("request", 16) + b"\x01\x02"}
    note = b'{"resourceType":"Observation","status":"final"}'
    cases = [
        ("empty body", address("body", op=1, **ids, **write, last=True), b"", "none"),
        ("short body", address("body", op=1, **ids, **write, last=True), note, "none"),
        ("padded body", address("body", op=1, **ids, **write, last=True), fill("clear", 1100), "none"),
        ("part of a body", address("body", op=1, **ids, **write, part=0x01020304), fill("clear", 100), "none"),
        ("header of a tombstone", address("header", op=2, **ids, **write), note, "none"),
        ("audit event", address("audit_event", **place, **write), note, "none"),
        ("wrapped tenant key", address("wrapped_key", op=1, tenant=ids["tenant"]), fill("tenant key", 32), "none"),
        ("wrapped chart key", address("wrapped_key", op=4, **place, record=key_id(fill("chart key", 32)) + bytes(8)),
         fill("chart key", 32), "none"),
        ("name", address("name", tenant=ids["tenant"]), "Krankenhaus Süd".encode(), "none"),
        ("grant", address("grant", tenant=ids["tenant"], record=fill("principal", 16)), b"reader", "none"),
        ("page token", address("page_token", tenant=ids["tenant"], record=fill("principal", 16)), b"page", "none"),
        ("root check", address("root_check"), b"example", "none"),
        ("compressed body: to be opened only", address("body", op=1, **ids, **write, last=True), note * 30, "zstd"),
    ]
    for name, where, clear, compression in cases:
        key, salt = fill(f"key of {name}", 32), fill(f"salt of {name}", 24)
        sealed = seal(key, key_id(key), salt, where, clear, compression)
        yield {"name": name, "key": key.hex(), "key_id": key_id(key).hex(), "salt": salt.hex(), "address": where,
               "clear": clear.hex(), "compression": compression, "envelope": sealed.hex()}


def tokens():
    secret, root = fill("address secret", 32), fill("root key", 32)
    chart = token(secret, "chart", b"\x01" + b"patient-1")
    term = token(secret, "term", struct.pack(">I", 7) + b"urn:mrn" + "4711-é".encode())
    return {
        "address_secret": secret.hex(), "root_key": root.hex(), "chart_kind": 1, "chart_id": "patient-1",
        "record_type": "Observation", "record_id": "obs-é", "principal": "spiffe://example/operator/ada",
        "canonical": "00ff", "chart": chart.hex(),
        "slot": int.from_bytes(token(secret, "slot", chart)[:2], "big"),
        "type_token": token(secret, "type", chart + b"Observation").hex(),
        "record_token": token(secret, "record", chart + struct.pack(">I", 11) + b"Observation" + "obs-é".encode()).hex(),
        "principal_token": token(secret, "principal", b"spiffe://example/operator/ada").hex(),
        "fingerprint": token(secret, "fingerprint", b"\x00\xff").hex(),
        "operator_token": token(root, "principal", b"spiffe://example/operator/ada").hex(),
        "term_system": "urn:mrn", "term_value": "4711-é", "term_token": term.hex(),
        "term_slot": int.from_bytes(token(secret, "term-slot", term)[:2], "big"),
    }


def main():
    if "--write" in sys.argv:
        FILE.write_text(json.dumps({"envelopes": list(envelopes()), "tokens": tokens()}, indent=1) + "\n")
    vectors = json.loads(FILE.read_text())
    for v in vectors["envelopes"]:
        key, clear = bytes.fromhex(v["key"]), bytes.fromhex(v["clear"])
        assert open_(key, v["address"], bytes.fromhex(v["envelope"])) == clear, v["name"]
        if v["compression"] == "none":
            again = seal(key, bytes.fromhex(v["key_id"]), bytes.fromhex(v["salt"]), v["address"], clear, "none")
            assert again.hex() == v["envelope"], v["name"]
    assert vectors["tokens"] == tokens()
    print(f"{len(vectors['envelopes'])} envelopes and the tokens agree")


main()
