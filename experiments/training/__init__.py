# SPDX-License-Identifier: Apache-2.0
"""The stages that train: classifiers, the prior, the control."""
