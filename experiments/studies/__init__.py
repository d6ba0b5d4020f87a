# SPDX-License-Identifier: Apache-2.0
"""Where gaps come from and what methods are worth, behind tables of docs/."""
