"""recgrit models as components of other recommendation libraries.

Each module needs the library that it is for. recgrit has an extra with the library's name.
"""
