"""The file is enough: a checkpoint loads and runs without the plugin that made it, torch or pickle."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest

import tnc


def test_loading_without_the_plugin(tmp_path):
    weight = np.random.default_rng(0).standard_normal((12, 18))
    for name in ("mpo", "tucker", "svd"):
        made = tnc.compress_weights({"w": weight}, name, rank=2)
        made.save(tmp_path / name)
        np.save(tmp_path / f"{name}.npy", made["w"].dense())
    code = """
    import sys
    class Refuse:
        def find_spec(self, name, *rest):
            if name.partition(".")[0] in ("tnc_plugins", "torch"):
                raise ImportError(name)
    sys.meta_path.insert(0, Refuse())
    import pickle
    pickle.load = pickle.loads = pickle.Unpickler = None
    import numpy as np, tnc
    try:
        tnc.decompositions["mpo"]
    except ImportError:
        pass
    else:
        raise SystemExit("the plugin was there")
    for name in ("mpo", "tucker", "svd"):
        found = tnc.load(f"{sys.argv[1]}/{name}")
        x = np.ones((3, 18))
        dense = found["w"].dense()
        assert np.allclose(found["w"].apply(x), x @ dense.T)
        assert found.methods == {"w": name} and found.report.rows[0].method == name
        print(repr(float(dense.sum())))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sums = [float(np.load(tmp_path / f"{name}.npy").sum()) for name in ("mpo", "tucker", "svd")]
    assert [float(line) for line in done.stdout.split()] == pytest.approx(sums)
