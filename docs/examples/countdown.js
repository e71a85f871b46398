const WARNING = 60;
const dialog = document.getElementById("countdown");
let end = 0;
let timer = 0;

async function ask(address, method = "GET") {
  const answer = await fetch(address, { method });
  const { seconds } = await answer.json();
  if (seconds <= 0) return location.reload();
  end = Date.now() + seconds * 1000;
  show();
}

function show() {
  const seconds = Math.max(0, Math.ceil((end - Date.now()) / 1000));
  clearTimeout(timer);
  if (seconds > WARNING) {
    dialog.close();
    timer = setTimeout(ask, (seconds - WARNING) * 1000, dialog.dataset.left);
    return;
  }
  if (!dialog.open) dialog.showModal();
  dialog.querySelector("span").textContent = seconds;
  timer = seconds % 10 ? setTimeout(show, 1000) : setTimeout(ask, 1000, dialog.dataset.left);
}

dialog.querySelector("button").addEventListener("click", () =>
  ask(dialog.dataset.stay, "POST"),
);
ask(dialog.dataset.left);
