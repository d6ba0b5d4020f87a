# SPDX-License-Identifier: Apache-2.0
"""Runs that are killed, starved and lied to, and must end well."""
