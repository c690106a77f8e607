"""A small test eMSP: registers at a CPO, commands it, and checks every word it hears."""
