# SPDX-License-Identifier: Apache-2.0
"""Somebody's own data and labels: from a config to a problem."""
