"""Messages of the gRPC port: the `.proto` files, and the Python that the compiler makes of them. Imported when gRPC is enabled.

`make proto` after a change of a `.proto` file; tests/unit/test_runtime_protos.py compares. Service stubs are not made: the
port registers its methods by name, and whoever calls it has stubs of its own. Names and numbers of the fields are those of the
public protocols, so that their clients understand us; the files say which.
"""
