"""The gateway: uplink v1 towards the boards, OCPI 2.2.1 (CPO) towards the eMSPs."""
