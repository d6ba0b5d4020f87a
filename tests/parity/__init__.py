# SPDX-License-Identifier: Apache-2.0
"""Comparison with the libraries that write the weights: see `make parity`."""
