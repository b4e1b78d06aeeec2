"""Plain values: prefixes, keys, activity, measurements. Pure; knows no request and no record."""
