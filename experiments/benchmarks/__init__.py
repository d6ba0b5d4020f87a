# SPDX-License-Identifier: Apache-2.0
"""What speed, cost and scale are, a command a file."""
