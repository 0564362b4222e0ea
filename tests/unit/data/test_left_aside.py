"""Nothing that a reader is given is left aside, renamed, turned round or rounded away without a word."""

import numpy as np
import pytest
import scipy.io
import torch

import pyro_dssm as dssm
from pyro_dssm.data.mocap import load_mocap
from pyro_dssm.data.rolls import read_mat, read_packed, write_packed
from pyro_dssm.data.sequences import SequenceDataset
from pyro_dssm.data.splits import Splits
from pyro_dssm.data.trajectories import Trajectories
from pyro_dssm.speech import Spectrogram, find_recordings, load_recordings, load_speech

N, T, D = 4, 6, 2
X = np.linspace(0, 1, N * T * D).reshape(N, T, D)
U = np.ones((N, T, 1))


def save(folder, **arrays):
    np.savez(folder / "a.npz", **{"x": X, **arrays})
    return folder / "a.npz"


# Names.

UNKNOWN = {
    "cotnrols": "controls",
    "control": "u",
    "actions": "u",
    "U": "u",
    "stat": "state",
    "latents": "state",
    "Mask": "mask",
    "masks": "mask",
    "observed": "mask",
    "lenghts": "lengths",
    "seq_lens": "lengths",
    "state_name": "state_names",
    "observations": "x",
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_misspelt_array_is_asked_for(name, tmp_path):
    expected = rf"^{name}: expected the arrays x, u .or controls.*, got '{name}'; did you mean '{UNKNOWN[name]}'\?"
    with pytest.raises(ValueError, match=expected):
        Trajectories.load_npz(save(tmp_path, **{name: U}))


def test_sequences_of_different_lengths_in_one_array_are_told_how_to_be_padded(tmp_path):
    ragged = np.array([np.zeros((3, 2)), np.zeros((5, 2))], dtype=object)
    with pytest.raises(
        ValueError, match=r"^x: expected an array of numbers .* padded to one array, with their .lengths."
    ):
        Trajectories.load_npz(save(tmp_path, x=ragged))


@pytest.mark.parametrize("name", ["dt", "meta", "reward"])
def test_a_foreign_array_is_left_aside_when_asked(name, tmp_path):
    path = save(tmp_path, **{name: np.zeros(3)})
    with pytest.raises(
        ValueError, match=rf"^{name}: .* got '{name}'. To leave it aside, ignore=\['{name}'\]"
    ) as caught:
        Trajectories.load_npz(path)
    assert "did you mean" not in str(caught.value)
    assert len(Trajectories.load_npz(path, ignore=[name])) == N
    with pytest.raises(ValueError, match="^ignore: expected a list of names, got"):
        Trajectories.load_npz(path, ignore=name)


def test_other_names_that_are_understood(tmp_path):
    data = Trajectories.load_npz(save(tmp_path, controls=U, states=X, state_names=np.array(["a", "b"])))
    assert data.controls.shape == (N, T, 1)
    assert torch.equal(data.states, data.x)
    assert data.state_names == ("a", "b")


@pytest.mark.parametrize(("one", "other"), [("u", "controls"), ("state", "states")])
def test_both_names_at_once(one, other, tmp_path):
    with pytest.raises(ValueError, match=f"^{other}: expected either '{one}' or '{other}', got both"):
        Trajectories.load_npz(save(tmp_path, **{one: U, other: U}))


def test_the_other_files_are_as_strict(tmp_path):
    roll = SequenceDataset([torch.eye(88)])
    path = write_packed(tmp_path / "a.npz", Splits(roll, roll, roll))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **{("train_length" if k == "train_lengths" else k): v for k, v in arrays.items()})
    with pytest.raises(ValueError, match="did you mean 'train_lengths'"):
        read_packed(path)
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = np.eye(88)
    scipy.io.savemat(tmp_path / "a.mat", {"traindata": cells, "validdata": cells, "test_data": cells})
    with pytest.raises(ValueError, match="got 'test_data'; did you mean 'testdata'"):
        read_mat(tmp_path / "a.mat")
    (tmp_path / "cmu_mocap_35").mkdir()
    np.savez(tmp_path / "cmu_mocap_35" / "mocap35.npz", train=X, valid=X, test=X, tests=X)
    with pytest.raises(ValueError, match="^tests: .* did you mean 'test'"):
        load_mocap(tmp_path)


# Lengths.


def padded(fill=np.nan):
    """Sequences of other lengths, and what comes after them."""
    lengths = np.array([6, 2, 5, 3])
    x, u = X.copy(), U.copy()
    for i, n in enumerate(lengths):
        x[i, n:], u[i, n:] = fill, fill
    return {"x": x, "u": u, "state": x + 1, "lengths": lengths}


@pytest.mark.parametrize("fill", [np.nan, 0.0, 7.0])
@pytest.mark.parametrize("mask_dim", [None, 2, 3])
def test_padding_is_no_data(fill, mask_dim, tmp_path):
    mask = None if mask_dim is None else np.ones((N, T, D)[:mask_dim], dtype=bool)
    arrays = padded(fill) | ({} if mask is None else {"mask": mask})
    data = Trajectories.load_npz(save(tmp_path, **arrays))
    dataset = data.dataset()
    assert dataset.lengths == [6, 2, 5, 3]
    for i, n in enumerate(dataset.lengths):
        assert torch.equal(dataset[i].x, torch.tensor(X[i, :n]).float())
        assert (data.x[i, n:] == 0).all()
        assert (data.controls[i, n:] == 0).all()
        assert (data.states[i, n:] == 0).all()
    again = Trajectories.load_npz(data.save_npz(tmp_path / "again.npz"))
    assert torch.equal(again.x, data.x)
    assert torch.equal(again.lengths, data.lengths)


def test_lengths_reach_the_bounds():
    """The bound of padded sequences is that of the same sequences one by one."""
    data = Trajectories.from_arrays(**{k: v for k, v in padded().items() if k != "state"})
    torch.manual_seed(0)
    model = dssm.DMM(D, 2, mlp_dims=(4,), emission="gaussian", control_dim=1)
    guide = dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4)
    whole = dssm.evaluate(model, guide, data.dataset(), num_particles=2000).elbo
    single = SequenceDataset(
        [torch.tensor(X[i, :n]).float() for i, n in enumerate([6, 2, 5, 3])],
        controls=[torch.ones(n, 1) for n in (6, 2, 5, 3)],
    )
    assert whole.nats_per_step == pytest.approx(
        dssm.evaluate(model, guide, single, num_particles=2000).elbo.nats_per_step, rel=1e-5
    )


@pytest.mark.parametrize(("length", "stride"), [(2, 1), (3, None), (5, 1), (1, 2)])
def test_windows_hold_no_padding(length, stride):
    data = Trajectories.from_arrays(**padded())
    windows = data.windows(length, stride)
    expected = [
        data.x[i, s : s + length]
        for i, n in enumerate([6, 2, 5, 3])
        for s in range(0, T - length + 1, stride or length)
        if s + length <= n
    ]
    assert torch.equal(windows.x, torch.stack(expected))
    assert windows.lengths is None
    assert windows.states.shape[0] == windows.controls.shape[0] == len(expected)


def test_parts_keep_their_lengths():
    data = Trajectories.from_arrays(**padded())
    assert data.split(2, 1, 1).valid.dataset().lengths == [5]
    assert repr(data) == "Trajectories(4 x 2 to 6 frames of 2; controls of 1; states 0, 1)"
    with pytest.raises(ValueError, match="^length: expected at most the 5 frames of a sequence, got 6"):
        data[1:].windows(6)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        (np.array([6.0, 2, 5, 3]), "integers, got torch.float64"),
        (np.array([6, 2, 5]), r"shape \(4,\), got \(3,\)"),
        (np.array([[6, 2, 5, 3]]), r"shape \(4,\), got \(1, 4\)"),
        (np.array([7, 2, 5, 3]), "values from 1 to T = 6, got values from 2 to 7"),
        (np.array([0, 2, 5, 3]), "values from 1 to T = 6, got values from 0 to 5"),
        (np.array([True] * 4), "integers, got torch.bool"),
    ],
)
def test_bad_lengths(lengths, words, tmp_path):
    with pytest.raises(ValueError, match=f"^lengths: expected {words}"):
        Trajectories.load_npz(save(tmp_path, lengths=lengths))


def test_missing_values_within_a_sequence_are_no_padding():
    arrays = padded()
    arrays["x"][0, 1, 0] = np.nan
    with pytest.raises(ValueError, match="^x: expected finite .* got 1 others; hide missing values with mask"):
        Trajectories.from_arrays(**arrays)


# Channels.

LAST = [(N, T, 16, 16, 3), (N, T, 28, 28, 1), (N, T, 9, 5, 4), (N, T, 12, 8, 2)]


@pytest.mark.parametrize("shape", LAST)
def test_channels_last_are_asked_for(shape):
    x = np.random.default_rng(0).random(shape)
    with pytest.raises(ValueError, match=r"^x: .*did you mean x.transpose\(0, 1, 4, 2, 3\)\? channels='last' does"):
        Trajectories.from_arrays(x)
    mask = x > 0.2
    turned = Trajectories.from_arrays(x, mask=mask, channels="last")
    expected = Trajectories.from_arrays(
        x.transpose(0, 1, 4, 2, 3), mask=mask.transpose(0, 1, 4, 2, 3), channels="first"
    )
    assert turned.image_shape == expected.image_shape == (shape[-1], *shape[2:4])
    assert torch.equal(turned.x, expected.x)
    assert torch.equal(turned.mask, expected.mask)
    kept = Trajectories.from_arrays(x, channels="first")
    assert kept.image_shape == shape[2:]
    assert torch.equal(kept.x, torch.tensor(x).float().flatten(2))


def test_a_flat_mask_does_not_say_where_the_channels_are():
    x = np.zeros((N, T, 8, 8, 3))
    with pytest.raises(ValueError, match=r"^mask: expected shape \(4, 6\) or \(4, 6, 8, 8, 3\) .* got \(4, 6, 192\)"):
        Trajectories.from_arrays(x, mask=np.ones((N, T, 8 * 8 * 3)), channels="last")
    grey = Trajectories.from_arrays(x[..., :1], mask=np.ones((N, T, 8 * 8)), channels="last")
    assert grey.mask.all()


@pytest.mark.parametrize("shape", [(N, T, 3, 16, 16), (N, T, 1, 8, 3), (N, T, 16, 16), (N, T, 4, 4), (N, T, 4, 8, 4)])
def test_plausible_images_are_taken_as_they_are(shape):
    assert Trajectories.from_arrays(np.zeros(shape)).images().shape[-2:] == shape[-2:]


def test_one_film_in_colours_is_no_set_of_grey_ones():
    with pytest.raises(ValueError, match=r"^x: expected grey images .*did you mean x\[None\] with channels='last'"):
        Trajectories.from_arrays(np.zeros((T, 16, 16, 3)))
    assert Trajectories.from_arrays(np.zeros((T, 16, 16, 3)), channels="first").image_shape == (1, 16, 3)


@pytest.mark.parametrize(("shape", "channels"), [((N, T, D), "last"), ((N, T, 8, 8), "last"), ((N, T, D), "middle")])
def test_bad_channels(shape, channels):
    with pytest.raises(ValueError, match="^channels: expected '"):
        Trajectories.from_arrays(np.zeros(shape), channels=channels)


@pytest.mark.parametrize("shape", [(16, 16, 3), (28, 28, 1)])
def test_networks_warn_of_channels_last(shape):
    expected = rf"^image_shape: .*got \({shape[0]}, .* did you mean \({shape[2]}, {shape[0]}, {shape[1]}\)"
    x_dim, options = int(np.prod(shape)), {"emission_options": {"image_shape": shape}}
    for emission in ("gaussian", "bernoulli"):
        with pytest.warns(UserWarning, match=expected):
            dssm.DMM(x_dim, 2, emission=emission, **options)
    with pytest.warns(UserWarning, match=expected):
        dssm.FullAlignment(dssm.DMM(x_dim, 2), image_shape=shape)


# Numbers.

CLOCKS = {
    "seconds": 1.7e9 + np.arange(T),
    "milliseconds": 1.7e12 + 20.0 * np.arange(T),
    "beyond 2^24": 2.0**24 - 1 + np.arange(T),
    "a level": 1e6 + 0.01 * np.sin(np.arange(T)),
    "minutes": 1.7e9 + 60.0 * np.arange(T),
}
FINE = {
    "from the first": np.arange(T) * 1.0,
    "below 2^24": 2.0**24 - 100 + np.arange(T),
    "at rest": np.full(T, 1.7e9),
    "at rest but for rounding": np.full(T, 9.81) + 1e-15 * np.arange(T),
    "coming to rest": 1 + 10.0 ** -(3 * np.arange(T)),
    "far from zero": 1e3 + np.sin(np.arange(T)),
}


def with_channel(values):
    x = X.copy()
    x[..., 1] = values + 1000.0 * np.arange(N)[:, None] * (np.abs(values).max() > 1e8)
    return x


def of(x):
    return [torch.tensor(v) for v in x]


def pair(**options):
    model = dssm.DMM(D, 2, mlp_dims=(4,), emission="gaussian", **options)
    return model, dssm.FullAlignment(model, rnn_dim=4, hidden_dim=4)


ENTRANCES = {
    "x": ("x", lambda x: Trajectories.from_arrays(x)),
    "a tensor": ("x", lambda x: Trajectories.from_arrays(torch.tensor(x))),
    "u": ("u", lambda x: Trajectories.from_arrays(X, u=x)),
    "state": ("state", lambda x: Trajectories.from_arrays(X, state=x)),
    "fit": ("sequences", lambda x: dssm.fit(*pair(), SequenceDataset(of(x)), epochs=1, progress=False)),
    "evaluate": ("sequences", lambda x: dssm.evaluate(*pair(), SequenceDataset(of(x)))),
    "controls": (
        "controls",
        lambda x: dssm.fit(*pair(control_dim=2), SequenceDataset(of(X), controls=of(x)), epochs=1, progress=False),
    ),
    "double trajectories": ("sequences", lambda x: dssm.evaluate(*pair(), Trajectories(torch.tensor(x)).dataset())),
}


@pytest.mark.parametrize("clock", CLOCKS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_frames_that_float32_merges_are_refused(entrance, clock):
    name, enter = ENTRANCES[entrance]
    with pytest.raises(ValueError, match=f"^{name}: expected frames .* got channel 1 .* subtract an offset first"):
        enter(with_channel(CLOCKS[clock]))


@pytest.mark.parametrize("clock", FINE)
@pytest.mark.parametrize("entrance", ["x", "u", "state", "double trajectories"])
def test_other_frames_are_taken(entrance, clock):
    ENTRANCES[entrance][1](with_channel(FINE[clock]))


def test_the_remedy_helps():
    x = with_channel(CLOCKS["seconds"])
    Trajectories.from_arrays(x - x[:, :1])
    Trajectories.from_arrays(x.astype(np.float32))  # whoever rounds by themselves knows it


def test_what_is_hidden_or_padded_counts_for_nothing():
    x = with_channel(np.arange(T) * 1.0)
    x[:, 3] = 1e12
    mask = np.ones((N, T), dtype=bool)
    mask[:, 3] = False
    Trajectories.from_arrays(x, mask=mask)
    x = with_channel(CLOCKS["seconds"])
    x[:, 3] = 0.0  # the jump there and back would hide the steps of a second
    with pytest.raises(ValueError, match="^x: expected frames"):
        Trajectories.from_arrays(x, mask=mask)
    x = with_channel(CLOCKS["seconds"])
    x[:, 4:] = np.nan
    with pytest.raises(ValueError, match="^x: expected frames"):
        Trajectories.from_arrays(x, lengths=np.full(N, 4))


def test_models_in_double_precision_read_time_stamps():
    model, guide = pair()
    data = SequenceDataset(of(with_channel(CLOCKS["minutes"])))
    assert dssm.evaluate(model.double(), guide.double(), data).elbo.nats_per_step > 0


@pytest.mark.parametrize("kind", [np.int64, np.uint8, "datetime64[s]"])
def test_other_numbers_are_refused(kind):
    with pytest.raises(ValueError, match="^x: expected"):
        Trajectories.from_arrays(np.arange(N * T * D).reshape(N, T, D).astype(kind))


# Recordings.

WRITTEN = {".mp3": "MP3", ".aiff": "AIFF", ".aif": "AIFF", ".flac": "FLAC", ".ogg": "OGG", ".opus": "OGG",
           ".caf": "CAF", ".au": "AU", ".w64": "W64", ".sph": "NIST"}  # fmt: skip
FRAMES = Spectrogram(window=256, hop=128, rate=16000)


def sing(path, seconds=0.5, seed=0):
    soundfile = pytest.importorskip("soundfile")
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(16000 * seconds)) / 16000
    wave = 0.3 * np.sin(2 * np.pi * (220 + 20 * seed) * time)
    if path.suffix == ".wav":
        soundfile.write(path, wave, 16000)
    else:
        subtype = {".opus": "OPUS", ".ogg": "VORBIS", ".mp3": "MPEG_LAYER_III"}.get(path.suffix, "PCM_16")
        soundfile.write(path, wave, 16000, format=WRITTEN[path.suffix], subtype=subtype)
    return wave


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_kind_of_recording_is_read(kind, tmp_path):
    wave = sing(tmp_path / f"a{kind}")
    sing(tmp_path / "b.wav", seed=1)
    data = load_recordings(tmp_path, spectrogram=FRAMES)
    assert [r.path.name for r in data.recordings] == [f"a{kind}", "b.wav"]
    read = data.wave(0).numpy()
    assert abs(len(read) - len(wave)) <= 1152  # a lossy format may round to its own frames
    power = np.abs(np.fft.rfft(read)) ** 2
    assert np.argmax(power) / len(read) * 16000 == pytest.approx(220, abs=4)


@pytest.mark.parametrize("kind", [".m4a", ".aac", ".wma", ".M4A", ".amr"])
def test_recordings_that_cannot_be_read_are_named(kind, tmp_path):
    for i in range(3):
        sing(tmp_path / "ann" / f"{i}.wav", seed=i)
        sing(tmp_path / "bob" / f"{i}.mp3", seed=i)
    (tmp_path / "cid").mkdir()
    (tmp_path / "cid" / f"0{kind}").write_bytes(b"no sound that anything here knows" * 40)
    for load in (load_speech, load_recordings):
        with pytest.raises(ValueError, match=rf"can be decoded, got .*0{kind}: .*convert others first"):
            load(tmp_path, spectrogram=FRAMES)
    data = load_recordings(tmp_path, spectrogram=FRAMES, skip_bad=True)
    assert len(data) == 6
    assert [path.name for path, _ in data.skipped] == [f"0{kind}"]


@pytest.mark.parametrize(
    ("one", "other"), [("1.wav", "1.mp3"), ("1.flac", "1.wav"), ("1.m4a", "1.wav"), ("1.wav", "1.WAV")]
)
def test_a_recording_in_two_formats_is_no_two_recordings(one, other, tmp_path):
    for name in (f"ann/{one}", f"ann/{other}", "bob/1.wav", "cid/1.wav"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for load in (load_speech, load_recordings, find_recordings):
        with pytest.raises(ValueError, match=r"^folder: expected one file of each recording .*ann/1\..* and 1\."):
            load(tmp_path)
