"""A task of a Slurm array: continue from the latest checkpoint, up to 500 epochs more than the task before
(TensorFlow 2.0 to 2.15).

    sbatch --array=1-4%1 --wrap "python slurm_array.py"
"""

import os

import tensorflow as tf
from digits import load_data

(train_images, train_labels), (test_images, test_labels) = load_data()


def create_model():
    model = tf.keras.models.Sequential(
        [
            tf.keras.layers.Dense(64, activation="relu", input_shape=train_images.shape[1:]),
            tf.keras.layers.Dropout(0.2),
            tf.keras.layers.Dense(10),
        ]
    )
    model.compile(
        optimizer="adam",
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


num_epochs = int(os.environ.get("EPOCHS", "500")) * int(os.environ["SLURM_ARRAY_TASK_ID"])
checkpoint_path = "training_3/cp-{epoch:04d}.ckpt"
checkpoint_dir = os.path.dirname(checkpoint_path)

cp_callback = tf.keras.callbacks.ModelCheckpoint(
    filepath=checkpoint_path, save_weights_only=True, verbose=1, period=5
)

model = create_model()
latest = tf.train.latest_checkpoint(checkpoint_dir)
epoch = 0
if latest is not None:
    model.load_weights(latest)
    epoch = int(latest.split("-")[-1].split(".")[0])
print(f"Epochs {epoch} to {num_epochs}")

model.fit(
    train_images, train_labels, initial_epoch=epoch, epochs=num_epochs, callbacks=[cp_callback], verbose=0
)
loss, acc = model.evaluate(test_images, test_labels, verbose=2)
print(f"After epoch {num_epochs}, accuracy: {100 * acc:5.2f}%")
